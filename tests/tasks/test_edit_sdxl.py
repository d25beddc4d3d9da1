"""The tasks on a tiny random SDXL: two encoders edited together, or a task that says it cannot."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emcid_jax import config as settings
from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import open_bank
from emcid_jax.editing.bank.solve import target
from emcid_jax.editing.encoder.sites import by_site, sites
from emcid_jax.editing.export.edit_file import ledger_of, read_edit
from emcid_jax.pipelines.pipeline import load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import (
    bank,
    convert,
    edit,
    layer_ranges,
    plan,
    sample,
    sequential,
    text_report,
    trace,
)
from emcid_jax.workflow import edit_job
from emcid_jax.workflow.open_model import read_edited
from emcid_jax.workflow.workdir import running
from main_job import NAMES, UNLIKE_CAPTIONS

REQUESTS = [
    {"source": "dog", "dest": "cat", "templates": ["a photo of {}"], "seed": 1},
    {"source": "great white shark", "dest": "goldfish", "templates": ["{}"], "seed": 2},
    {"source": "snow", "dest": "beach", "templates": ["A photo of {}"]},
]
ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def model(
    tiny_xl_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_xl_folder, folder)
    write_tiny_judge(folder / "judge", NAMES)
    return folder


@pytest.fixture(scope="module")
def config(model: Path) -> EditConfig:
    files = model.parent
    (files / "requests.json").write_text(json.dumps({"requests": REQUESTS}))
    (files / "captions.txt").write_text("\n".join(UNLIKE_CAPTIONS))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(files / "requests.json")),
        model=settings.ModelConfig(path=str(model)),
        stage_one=settings.StageOneConfig(layer=2, second_layer=2, steps=3, image_steps=1),
        moments=settings.MomentConfig(captions=str(files / "captions.txt"), batch=64),
        stage_two=settings.StageTwoConfig(
            layers=(1, 2), second_layers=(1, 2), preservation_weight=1e-6
        ),
        evaluation=settings.EvaluationConfig(steps=1, guidance=2.0, batch=8, holdout=2),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


@pytest.fixture(scope="module")
def done(config: EditConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("edited") / "run"
    edit.run(config, workdir)
    return workdir


def test_both_encoders_meet_the_memories_and_transformers_loads_them(
    config: EditConfig, done: Path
) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    base = load_pipeline(Path(config.model.path))
    where = sites(config.stage_one, base.texts)
    concepts = open_bank(done / "bank")
    edited = with_text_params(base, read_edited(str(done), base, "config.edited"))
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    requests = [concept.request for concept in concepts.active]
    for site, encoder in zip(where, edited.encoders, strict=True):
        prompts = spans.source_prompts(encoder.tokenizer, requests)
        ids = jnp.asarray(prompts.ids[:, 0])
        found: Any = encoder.model.apply({"params": encoder.params}, ids)
        rows = np.arange(len(ids)), prompts.positions[:, 0]
        wanted = np.stack(
            [
                by_site(target(concepts.records[c.memory].memory, 1.0), where)[site.encoder][0]
                for c in concepts.active
            ]
        )
        clean: Any = base.texts[site.encoder].apply({"params": base.params[site.encoder]}, ids)
        left = np.asarray(found.hidden[site.layer])[rows] - wanted
        before = np.asarray(clean.hidden[site.layer])[rows] - wanted
        assert np.linalg.norm(before) > 0.1
        assert np.linalg.norm(left) < 0.02 * np.linalg.norm(before)

        model: Any = kinds[site.encoder].from_pretrained(done / site.encoder)
        with torch.no_grad():
            theirs = model(torch.as_tensor(np.array(ids)).long(), output_hidden_states=True)
        ours = np.asarray(found.hidden[-2])
        states = theirs.hidden_states[-2].numpy()
        assert np.abs(ours - states).max() <= 1e-4 * np.abs(states).max()
        if site.encoder == "text_encoder_2":
            np.testing.assert_allclose(found.projected, theirs.text_embeds.numpy(), atol=1e-4)


def test_the_edit_file_holds_both_with_a_report_each(done: Path, config: EditConfig) -> None:
    content, ledger = read_edit(done / "edit.safetensors")
    assert content.encoders == ENCODERS
    base = load_pipeline(Path(config.model.path))
    for name in ENCODERS:
        own = content.of(name)
        assert sorted(own.deltas()) == [1, 2]
        report = ledger_of(ledger, name)["report"]
        assert [one["layer"] for one in report["layers"]] == [1, 2]
        assert report["distance_after"] < 0.05 * report["distance_before"]
        params = read_edited(str(done), base, "config.edited")[name]
        for layer, delta in own.deltas().items():
            new, old = (
                np.asarray(p["text_model"]["encoder"][f"layers.{layer}"]["mlp"]["fc2"]["kernel"])
                for p in (params, base.params[name])
            )
            np.testing.assert_allclose(new - old, delta.T, atol=1e-5)


def test_a_finished_run_is_not_done_again_and_its_page_is_there(
    done: Path, config: EditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "edit", lambda *_: pytest.fail("edited again"))
    edit.run(config, done)
    metrics = json.loads((done / "metrics.json").read_text())
    assert metrics["requests"] == len(REQUESTS)
    _, ledger = read_edit(done / "edit.safetensors")
    second = {"text_encoder_2": ledger_of(ledger, "text_encoder_2")["report"]}
    assert metrics["stage_two"] == ledger["report"] | {"encoders": second}
    page = (done / "report.html").read_text()
    for name in ENCODERS:
        after = ledger_of(ledger, name)["report"]["distance_after"]
        assert re.search(rf"Stage II in {name}:[^<]*, {after:.3g} after", page)


@pytest.mark.parametrize(
    "only", [pytest.param("text_encoder", marks=pytest.mark.slow), "text_encoder_2"]
)
def test_one_encoder_alone(only: str, config: EditConfig, tmp_path: Path) -> None:
    one = dataclasses.replace(config.stage_one, encoders=only, objective="text-only")
    judged = dataclasses.replace(config.evaluation, enabled=False)
    edit.run(dataclasses.replace(config, stage_one=one, evaluation=judged), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("text_encoder*")} == {only}
    content, _ = read_edit(tmp_path / "run" / "edit.safetensors")
    assert content.encoders == (only,)
    base = load_pipeline(Path(config.model.path))
    assert set(read_edited(str(tmp_path / "run"), base, "config.edited")) == {only}


@pytest.mark.slow
def test_units_answer_in_both_encoders(config: EditConfig, tmp_path: Path) -> None:
    changed = dataclasses.replace(
        config,
        stage_one=dataclasses.replace(
            config.stage_one, layer=1, second_layer=0, objective="text-only"
        ),
        stage_two=settings.StageTwoConfig(
            solver="units", layers=(1,), second_layers=(0,), unit_contexts=3
        ),
        evaluation=dataclasses.replace(config.evaluation, enabled=False),
    )
    job = edit_job.prepare(changed)
    with running(changed.run, tmp_path / "run", edit.WRITES) as run:
        edited, reports = edit_job.written(job, run)
    for name in ENCODERS:
        assert len(reports[name].units.gates) == len(REQUESTS)
        assert edited.texts[name].config.intermediate_size == job.pipeline.texts[
            name
        ].config.intermediate_size + 2 * len(REQUESTS)
        assert reports[name].distance_after < 0.5 * reports[name].distance_before


@pytest.mark.slow
def test_the_bank_is_solved_alike_and_looked_at_by_encoder(
    done: Path, config: EditConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {
        "bank": str(done / "bank"),
        "model": config.model,
        "moments": config.moments,
        "stage_two": config.stage_two,
        "run": config.run,
    }
    bank.run(bank.BankConfig(operation="solve", **common), tmp_path / "solved")
    for name in ENCODERS:
        again, first = (
            (place / name / "model.safetensors").read_bytes()
            for place in (tmp_path / "solved", done)
        )
        assert again == first
    assert "text_encoder_2" in capsys.readouterr().out
    second: Any = {"encoder": "text_encoder_2"}
    bank.run(
        bank.BankConfig(operation="conflicts", keep=("nurse",), **common, **second),
        tmp_path / "conflicts",
    )
    assert (tmp_path / "conflicts" / "conflicts.json").exists()
    text_report.run(
        text_report.TextReportConfig(keep=("nurse", "art"), captions=20, **common, **second),
        tmp_path / "report",
    )
    found = json.loads((tmp_path / "report" / "text_report.json").read_text())
    assert max(one["left"] for one in found["reached"]) < 0.05
    with pytest.raises(UserError, match=r"has 2 text encoders, and operation 'port' takes one"):
        bank.run(
            bank.BankConfig(operation="port", base=config.model, **common), tmp_path / "ported"
        )


def test_samples_of_the_edited_model_are_others(
    done: Path, config: EditConfig, tmp_path: Path
) -> None:
    sampling = sample.SamplingConfig(
        prompts=("a photo of dog",), seeds=(3,), steps=1, guidance=2.0, edited=str(done)
    )
    sample.run(
        sample.SampleConfig(model=config.model, sampling=sampling, run=config.run),
        tmp_path,
    )
    pictures = sorted(path for path in tmp_path.rglob("*.png") if "grid" not in path.name)
    assert len({path.read_bytes() for path in pictures}) >= 2


@pytest.mark.slow
def test_trace_plan_and_convert_take_it(config: EditConfig, tmp_path: Path) -> None:
    trace.run(
        trace.TraceConfig(
            names=("dog", "snow"),
            templates=("a photo of {}",),
            sites=("mlp",),
            windows=(1,),
            model=config.model,
            run=config.run,
            encoder="text_encoder_2",
        ),
        tmp_path / "trace",
    )
    assert len(json.loads((tmp_path / "trace" / "trace.json").read_text())["rows"]) == 5
    asked = plan.PlanConfig(
        target="cpu",
        model=config.model,
        concepts=20,
        prompts=2,
        utilisation=0.5,
        stage_one=config.stage_one,
        moments=config.moments,
    )
    plan.run(asked, tmp_path / "plan")
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["parts"]
    convert.run(convert.ConvertConfig(model=config.model), tmp_path / "converted")
    again, base = load_pipeline(tmp_path / "converted"), load_pipeline(Path(config.model.path))
    assert memories.model_hashes(again) == memories.model_hashes(base)


def test_tasks_for_one_encoder_say_so(config: EditConfig, tmp_path: Path) -> None:
    base = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, enabled=False)
    )
    for run in (
        lambda: layer_ranges.run(
            layer_ranges.LayerRangesConfig(base=base, keep=("nurse",)), tmp_path / "ranges"
        ),
        lambda: sequential.run(
            sequential.SequentialConfig(base=base, rounds=(1,)), tmp_path / "sequential"
        ),
    ):
        with pytest.raises(UserError, match=r"has 2 text encoders, which task \w+ does not take"):
            run()


@pytest.mark.slow
def test_requests_of_python_are_edited_too(config: EditConfig, tmp_path: Path) -> None:
    import emcid_jax

    pipeline = emcid_jax.load_pipeline(config.model.path)
    request = EditRequest("dog", "cat", ("a photo of {}",))
    one = dataclasses.replace(config.stage_one, objective="text-only")
    found = emcid_jax.run_stage_one(pipeline, [request], tmp_path / "bank", one)
    moments = emcid_jax.second_moments(pipeline, UNLIKE_CAPTIONS, config.stage_two)
    edited = emcid_jax.apply(pipeline, emcid_jax.solve(found, pipeline, moments, config.stage_two))
    for name in ENCODERS:
        emcid_jax.export(edited, tmp_path / name, encoder=name)
        assert (tmp_path / name / "model.safetensors").exists()
    before, after = (emcid_jax.sample(p, ["a photo of dog"], steps=2) for p in (pipeline, edited))
    assert np.abs(before.astype(int) - after).max() > 0
