"""The tasks that compare and measure, on a tiny random SDXL: what they say is of both encoders."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax import config as settings
from emcid_jax.baselines import uce
from emcid_jax.concepts import spans
from emcid_jax.config import EditConfig
from emcid_jax.editing.bank.concepts import open_bank
from emcid_jax.editing.bank.solve import target
from emcid_jax.editing.encoder.sites import by_site, sites
from emcid_jax.evaluation.benchmarks.implicit import choice
from emcid_jax.evaluation.benchmarks.quality import QualityConfig
from emcid_jax.evaluation.drawing.draw import drawn_seeds
from emcid_jax.evaluation.judges.clip import load_clip
from emcid_jax.evaluation.statistics.clip_score import clip_scores
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import ablate, convert, edit, evaluate, implicit, quality
from emcid_jax.workflow import edit_job, methods
from emcid_jax.workflow.open_model import read_edited
from emcid_jax.workflow.workdir import running
from main_job import UNLIKE_CAPTIONS

ENCODERS = ("text_encoder", "text_encoder_2")
LABELS = ["dog", "cat, kitten", "goldfish", "tench", "snow", "artist: Claude Monet"]
LABELS += ["artist: Banksy", "artist: art", "profession: nurse", "gender: female", "gender: male"]
UPDATES = [
    {"source": "dog", "dest": "goldfish", "templates": ["{}"]},
    {"source": "tench", "dest": "snow", "templates": ["a photo of {}"]},
]
OTHERS = [
    {
        "source": "a nurse",
        "dest": ["a female nurse", "a male nurse"],
        "task": "debias",
        "ratios": [0.25, 0.75],
        "templates": ["a photo of {}"],
    },
    {"source": "Claude Monet", "dest": "art", "task": "erase", "templates": ["art by {}"]},
    {"source": "kitty", "dest": "cat", "task": "rectify", "templates": ["{}"], "dest_id": 1},
]


@pytest.fixture(scope="module")
def config(
    tiny_xl_folder: Path,
    write_tiny_judge: Callable[..., None],
    write_tiny_image_tower: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> EditConfig:
    """Two updates, by text alone; one step wherever something is drawn."""
    files = tmp_path_factory.mktemp("inputs")
    model = Path(shutil.copytree(tiny_xl_folder, files / "tiny"))
    write_tiny_judge(model / "judge", LABELS, 4.0)
    write_tiny_image_tower(model / "image_tower")
    (files / "requests.json").write_text(json.dumps({"requests": UPDATES}))
    (files / "captions.txt").write_text("\n".join(UNLIKE_CAPTIONS))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(files / "requests.json")),
        model=settings.ModelConfig(path=str(model)),
        stage_one=settings.StageOneConfig(layer=2, second_layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(files / "captions.txt"), batch=64),
        stage_two=settings.StageTwoConfig(
            layers=(1, 2), second_layers=(1, 2), preservation_weight=1e-6
        ),
        debias=settings.DebiasConfig(
            images=4, tolerance=0.0, candidates=2, rounds=1, refinements=1, steps=1, batch=8
        ),
        evaluation=settings.EvaluationConfig(
            steps=1,
            guidance=2.0,
            batch=8,
            prompts_per_request=1,
            holdout=2,
            debias_seeds=2,
            debias_images=2,
        ),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


@pytest.fixture(scope="module")
def base(config: EditConfig) -> Pipeline:
    return load_pipeline(Path(config.model.path))


def changed(found: Pipeline, base: Pipeline) -> set[str]:
    """The parts of the model that have other parameters."""
    return {
        part
        for part, old in base.params.items()
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, old, found.params[part])))
    }


def with_table(config: EditConfig, folder: Path) -> EditConfig:
    """With a table of one implicit edit for requests."""
    table = [["old", "new", "positive1", "gt1", "negative1", "gn1"]]
    table += [["A dog", "A red dog", "a photo of a dog", "a photo of a red dog", "snow", "art"]]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    requests = settings.RequestsConfig(path=str(folder / "table.csv"), templates=("{}",))
    return dataclasses.replace(config, requests=requests)


def written(config: EditConfig, workdir: Path) -> tuple[Pipeline, Mapping[str, Any]]:
    """The edit and its reports by a direct call of both stages."""
    job = edit_job.prepare(config)
    with running(config.run, workdir, ("bank", "moments", "metrics.jsonl")) as run:
        return edit_job.written(job, run)


@pytest.mark.slow
def test_the_mixture_of_a_debias_search_is_met_in_both_encoders(
    config: EditConfig, base: Pipeline, tmp_path: Path
) -> None:
    file = tmp_path / "requests.json"
    file.write_text(json.dumps({"requests": [UPDATES[0], *OTHERS]}))
    every = dataclasses.replace(config, requests=settings.RequestsConfig(path=str(file)))
    edit.run(every, tmp_path / "run")
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"erase", "rectify", "debias", "debias_search"} <= set(figures)
    assert sum(figures["debias"]["records"][0]["after"]["shares"]) == pytest.approx(1)

    bank = open_bank(tmp_path / "run" / "bank")
    (nurse,) = (one for one in bank.concepts if one.request.source == "a nurse")
    record = bank.records[nurse.memory]
    assert record.provenance["factors"] == figures["debias_search"]["a nurse"]["factors"]
    edited = with_text_params(base, read_edited(str(tmp_path / "run"), base, "config.edited"))
    where = sites(config.stage_one, base.texts)
    wanted = by_site(target(record.memory, 1.0), where)
    for site, new, old in zip(where, edited.encoders, base.encoders, strict=True):
        prompts = spans.source_prompts(new.tokenizer, [nurse.request])
        ids, (place,) = jnp.asarray(prompts.ids[:, 0]), prompts.positions[:, 0]
        states: list[Any] = [one.model.apply({"params": one.params}, ids) for one in (old, new)]
        far, near = (
            np.linalg.norm(one.hidden[site.layer][0, place] - wanted[site.encoder][0])
            for one in states
        )
        assert far > 0.1
        assert near < 0.05 * far


@pytest.mark.slow
def test_every_method_of_a_comparison_edits_what_it_should(
    config: EditConfig, base: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "both:": set(ENCODERS),
        "second: stage_one.encoders=text_encoder_2": {"text_encoder_2"},
        "kept: keep=True stage_two.preservation_weight=1.0": set(ENCODERS),
        "UCE: method=uce": {"unet"},
        "tuned: method=fine-tune fine_tune.passes=2": set(ENCODERS),
    }
    asked = evaluate.EvaluateConfig(base=config, counts=(2,), rows=tuple(rows))
    made, edited = [], evaluate._edited

    def noted(*arguments: Any) -> methods.Edited:
        made.append(edited(*arguments))
        return made[-1]

    monkeypatch.setattr(evaluate, "_edited", noted)
    evaluate.run(asked, tmp_path / "run")
    assert [changed(one.pipeline, base) for one in made] == list(rows.values())
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    assert len({json.dumps(row["clean"]) for row in found}) == 1
    _, reports = written(config, tmp_path / "direct")
    assert found[0]["edit"]["reached"] == list(edit_job.distance(reports))
    assert found[1]["edit"]["reached"][0] < found[0]["edit"]["reached"][0]
    job = edit_job.prepare(config)
    closed = uce.solve(base, job.requests, [], uce.UceConfig())
    assert found[3]["edit"]["condition"] == pytest.approx(closed.condition)
    wide = {delta.shape[1] for delta in closed.deltas.values()}
    assert wide == {sum(text.config.hidden_size for text in base.texts.values())}
    assert (tmp_path / "run" / "evaluation.html").stat().st_size > 10_000


@pytest.mark.slow
def test_an_ablation_has_a_row_per_choice_of_encoders(config: EditConfig, tmp_path: Path) -> None:
    variants = ("", "stage_one.encoders=text_encoder", "stage_one.encoders=text_encoder_2")
    asked = ablate.AblateConfig(base=config, counts=(2,), variants=variants)
    ablate.run(asked, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "ablation.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(variants)
    assert len({json.dumps(row["aice"]) for row in rows}) == 3
    _, reports = written(config, tmp_path / "direct")
    assert rows[0]["reached"] == list(edit_job.distance(reports))
    alone = [row["reached"][0] for row in rows[1:]]
    assert 0 < min(alone) < sum(alone)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("stage_two.second_layers=(4,5)", r"second_layers is \(4, 5\), but the text_encoder_2 of"),
        ("stage_one.second_layer=4", r"stage_one.second_layer is 4, but text_encoder_2 has blocks"),
    ],
)
def test_a_row_whose_blocks_are_not_there_is_named_first(
    variant: str, message: str, config: EditConfig, tmp_path: Path
) -> None:
    for run in (
        lambda: ablate.run(
            ablate.AblateConfig(base=config, counts=(2,), variants=("", variant)), tmp_path / "run"
        ),
        lambda: evaluate.run(
            evaluate.EvaluateConfig(base=config, counts=(2,), rows=("a:", f"b: {variant}")),
            tmp_path / "run",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run()
    assert not (tmp_path / "run").exists()


def test_a_model_that_nothing_draws_with_is_edited_by_text_alone(
    config: EditConfig, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(config.model.path, tmp_path / "model"))
    name = "UniPCMultistepScheduler"
    file = model / "scheduler" / "scheduler_config.json"
    about = json.loads(file.read_text()) | {"_class_name": name, "solver_order": 2}
    file.write_text(json.dumps(about))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", name]
    (model / "model_index.json").write_text(json.dumps(index))

    chosen = dataclasses.replace(config, model=settings.ModelConfig(path=str(model)))
    unjudged = dataclasses.replace(config.evaluation, enabled=False)
    drawn = dataclasses.replace(config.stage_one, objective="ablate-dest")
    for run in (
        lambda: edit.run(chosen, tmp_path / "run"),
        lambda: edit.run(
            dataclasses.replace(chosen, evaluation=unjudged, stage_one=drawn), tmp_path / "run"
        ),
        lambda: implicit.run(
            implicit.ImplicitConfig(base=with_table(chosen, tmp_path)), tmp_path / "run"
        ),
        lambda: quality.run(
            quality.QualityTaskConfig(
                model=chosen.model, edited=str(model), quality=QualityConfig(count=8)
            ),
            tmp_path / "run",
        ),
    ):
        with pytest.raises(UserError, match=f"_class_name='{name}' is not supported; to draw"):
            run()
    assert not (tmp_path / "run").exists()

    edit.run(dataclasses.replace(chosen, evaluation=unjudged), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("text_encoder*")} == set(ENCODERS)
    convert.run(convert.ConvertConfig(model=chosen.model), tmp_path / "converted")
    kept = tmp_path / "converted" / "scheduler" / "scheduler_config.json"
    assert json.loads(kept.read_text()) == about


def test_an_implicit_edit_draws_with_both_encoders(config: EditConfig, tmp_path: Path) -> None:
    asked = with_table(config, tmp_path)
    implicit.run(implicit.ImplicitConfig(base=asked, seeds=1), tmp_path / "run")
    (row,) = json.loads((tmp_path / "run" / "implicit.json").read_text())["rows"]

    one = {"source": "a dog", "dest": "a red dog", "templates": ["{}"]}
    (tmp_path / "one.json").write_text(json.dumps([one]))
    direct = settings.RequestsConfig(path=str(tmp_path / "one.json"))
    edited, _ = written(dataclasses.replace(config, requests=direct), tmp_path / "direct")
    clip, prompts = load_clip(Path(config.model.path)), ["a dog", "a photo of a dog", "snow"]
    images = generate(edited, prompts, drawn_seeds("a dog", 0, 3), steps=1, guidance=2.0)
    old, new = (
        clip_scores(clip.images(images), clip.embed_texts(texts))
        for texts in (prompts, ["a red dog", "a photo of a red dog", "art"])
    )
    flat = [value for part in row["edited"] for value in part]
    np.testing.assert_allclose(flat, choice(old, new), rtol=1e-3)
    assert row["edited"] != row["base"]


def test_quality_is_measured_of_both_encoders_together(
    config: EditConfig, base: Pipeline, tmp_path: Path
) -> None:
    for name in ENCODERS:
        weights = load_file(Path(config.model.path) / name / "model.safetensors")
        (tmp_path / "edited" / name).mkdir(parents=True)
        strong = {key: 3 * value for key, value in weights.items() if "position_ids" not in key}
        save_file(strong, tmp_path / "edited" / name / "model.safetensors")
    prompts = ["a red car", "a photo of a cat", "art"]
    (tmp_path / "captions.csv").write_text(
        "prompt,evaluation_seed\n" + "".join(f"{p},{i}\n" for i, p in enumerate(prompts))
    )
    asked = quality.QualityTaskConfig(
        model=config.model,
        edited=str(tmp_path / "edited"),
        evaluation=dataclasses.replace(config.evaluation, guidance=12.0),
        quality=QualityConfig(captions=str(tmp_path / "captions.csv")),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    quality.run(asked, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "quality.json").read_text())["quality"]

    clip = load_clip(Path(config.model.path))
    both = read_edited(asked.edited, base, "config.edited")
    first = {"text_encoder": both["text_encoder"]}
    before, after, half = (
        clip_scores(
            clip.images(generate(model, prompts, [0, 1, 2], steps=1, guidance=12.0)),
            clip.embed_texts(prompts),
        ).mean()
        for model in (base, with_text_params(base, both), with_text_params(base, first))
    )
    assert min(abs(after - before), abs(after - half), abs(half - before)) > 0.1
    for side, score in (("before", before), ("after", after)):
        assert found["clip_score"][side]["value"] == pytest.approx(score, abs=0.02)
    # A folder that is called as an encoder is that encoder's.
    alone = read_edited(f"{asked.edited}/text_encoder_2", base, "config.edited")
    assert list(alone) == ["text_encoder_2"]
