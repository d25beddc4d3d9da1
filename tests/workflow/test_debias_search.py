"""All four tasks in one run of the main job, on a tiny random model; the debias search in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import choice
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank_files
from emcid_jax.editing.debias import mixing
from emcid_jax.editing.export.edit_file import read_edit
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.tasks import edit
from emcid_jax.workflow import debias_search, edit_job
from emcid_jax.workflow.find_memories import read_prompts
from emcid_jax.workflow.inputs import read_requests

LABELS = ["dog", "cat, kitten", "goldfish", "tench", "artist: Claude Monet", "artist: Banksy"]
LABELS += ["artist: art", "profession: nurse", "gender: female", "gender: male"]
NURSE = {
    "source": "a nurse",
    "dest": ["a female nurse", "a male nurse"],
    "task": "debias",
    "ratios": [0.25, 0.75],
    "templates": ["{}", "a photo of {}"],
}
REQUESTS: list[dict[str, Any]] = [
    {"source": "dog", "dest": "goldfish", "templates": ["{}"]},
    NURSE,
    {"source": "Claude Monet", "dest": "art", "task": "erase", "templates": ["art by {}"]},
    {"source": "kitty", "dest": "cat", "task": "rectify", "templates": ["{}"], "dest_id": 1},
]


@pytest.fixture(scope="module")
def config(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> EditConfig:
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(tiny_pipeline_folder, folder / "tiny")
    write_tiny_judge(folder / "tiny" / "judge", LABELS, 4.0)
    (folder / "requests.json").write_text(json.dumps({"requests": REQUESTS}))
    captions = [f"number {i} a picture of {name}" for i in range(12) for name in ("a dog", "snow")]
    (folder / "captions.txt").write_text("\n".join(captions))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(folder / "requests.json")),
        model=settings.ModelConfig(path=str(folder / "tiny")),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(folder / "captions.txt"), batch=24),
        stage_two=settings.StageTwoConfig(layers=(2,), preservation_weight=0.1),
        debias=settings.DebiasConfig(
            images=4, tolerance=0.0, candidates=2, rounds=1, refinements=1, steps=1, batch=8
        ),
        evaluation=settings.EvaluationConfig(
            steps=1, batch=8, prompts_per_request=1, holdout=2, debias_seeds=2, debias_images=2
        ),
        run=settings.RunConfig(progress=False, compile_cache=False),
    )


@pytest.fixture(scope="module")
def job(config: EditConfig) -> edit_job.Job:
    return edit_job.prepare(config)


@pytest.fixture(scope="module")
def finished(config: EditConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "workdir"
    edit.run(config, workdir)
    return workdir


def test_every_task_is_edited_and_scored(finished: Path) -> None:
    figures = json.loads((finished / "metrics.json").read_text())
    assert figures["requests"] == len(REQUESTS)
    assert figures["skipped"] == []  # AICE takes only what no other benchmark does.
    assert [record["source"] for record in figures["records"]] == ["dog"]
    assert "style_forget" in figures["erase"]["metrics"]
    assert [row["artist"] for row in figures["erase"]["kept"]] == ["Banksy"]
    assert "general_right_gain" in figures["rectify"]["metrics"]
    nurse = figures["debias"]["records"][0]
    assert sum(nurse["after"]["shares"]) == pytest.approx(1)
    assert figures["debias"]["images_per_seed"] == 2
    for task in ("debias", "erase", "rectify"):
        assert list((finished / "images" / task / "after").glob("*.png"))


def test_the_mixture_in_the_bank_is_that_of_the_parts(finished: Path, job: edit_job.Job) -> None:
    found = json.loads((finished / "metrics.json").read_text())["debias_search"]["a nurse"]
    bank = concept_bank.open_bank(finished / "bank")
    (nurse,) = choice.select(bank.concepts, ["a nurse"])
    record = bank.records[nurse.memory]
    assert record.provenance["factors"] == found["factors"]
    assert nurse.request.ratios == (0.25, 0.75)
    parts = mixing.parts(job.requests[1])
    about = [bank_files.provenance(part, job.config.stage_one, job.model) for part in parts]
    memories = [bank_files.read(finished / "bank", one) for one in about]
    wanted = memories[0].z - memories[0].delta  # type: ignore[union-attr]
    for factor, memory in zip(found["factors"], memories, strict=True):
        assert memory is not None
        wanted = wanted + factor * memory.delta
    np.testing.assert_allclose(record.memory.z, wanted, atol=1e-5)
    _, ledger = read_edit(finished / "edit.safetensors")
    assert "a nurse" in {request["source"] for request in ledger["requests"]}


def test_rounds_search_then_check_and_stop(finished: Path, config: EditConfig) -> None:
    content = checksums.read_json(finished / debias_search.FILE, "")
    kinds = [one["kind"] for one in content["rounds"]]
    assert kinds == sorted(kinds, reverse=True)  # All of the search, then all checks.
    assert kinds[0] == "search"
    assert len(content["rounds"][0]["trials"][0]) == config.debias.candidates
    found = content["found"]["a nurse"]
    assert sum(found["factors"]) == pytest.approx(1, abs=1e-5)
    near = mixing.is_near(found["counts"], (0.25, 0.75), 0.0)
    assert found["near"] is near
    checks = [one for one in content["rounds"] if one["kind"] == "check"]
    last = checks[-1]["trials"][0][0]
    assert near == mixing.is_near(last[1], (0.25, 0.75), 0.0) or len(checks) == 2


def test_a_killed_search_goes_on_and_ends_with_the_same_bits(
    finished: Path, config: EditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(finished, workdir)
    (workdir / "edit.safetensors").unlink()
    content = checksums.read_json(workdir / debias_search.FILE, "")
    rounds = len(content["rounds"])
    content["rounds"].pop()
    checksums.write_json(workdir / debias_search.FILE, content)
    drawn = []
    counts = debias_search.Rounds._counts

    def counted(self: debias_search.Rounds, number: int, *rest: Any) -> Any:
        drawn.append(number)
        return counts(self, number, *rest)

    monkeypatch.setattr(debias_search.Rounds, "_counts", counted)
    edit.run(config, workdir)
    assert drawn == [rounds - 1]
    found, wanted = (read_edit(one / "edit.safetensors")[0].arrays for one in (workdir, finished))
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_cannot_be_judged_or_cannot_end_is_said_before_any_work(
    config: EditConfig, job: edit_job.Job, tmp_path: Path
) -> None:
    assert job.judge is not None
    bad = tmp_path / "bad.json"
    tall = NURSE | {"dest": ["a tall nurse", "a short nurse"]}
    bad.write_text(json.dumps({"requests": [tall]}))
    with pytest.raises(UserError, match=r"bad.json:1: dest: the judge cannot tell"):
        debias_search.require_judgeable(
            read_requests(settings.RequestsConfig(path=str(bad))), job.judge, config.debias
        )
    requests = job.requests
    odd = settings.DebiasConfig(images=6, tolerance=0.08)
    with pytest.raises(UserError, match=r"tolerance is 0.08, but 6 images .* than 0.0833"):
        debias_search.require_judgeable(requests[1:2], job.judge, odd)
    debias_search.require_judgeable(requests[1:2], job.judge, config.debias)


def test_a_search_takes_one_edited_token(config: EditConfig) -> None:
    several = dataclasses.replace(config.stage_one, edited_tokens=2)
    with pytest.raises(UserError, match=r"edited_tokens is 2, but .*requests.json:1 is a 'debias'"):
        edit_job.prepare(dataclasses.replace(config, stage_one=several))


def test_other_tasks_than_the_main_job_refuse_debias(job: edit_job.Job) -> None:
    with pytest.raises(UserError, match="which only the main job"):
        read_prompts(job.pipeline, job.requests, job.config.stage_one)


@pytest.mark.parametrize("damage", ["a byte", "a field", "no number"])
def test_damaged_rounds_are_not_used(
    damage: str, finished: Path, config: EditConfig, tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(finished, tmp_path / "workdir"))
    (workdir / "edit.safetensors").unlink()
    path = workdir / debias_search.FILE
    content = checksums.read_json(path, "")
    if damage == "a byte":
        path.write_bytes(path.read_bytes().replace(b'"search"', b'"seaRch"', 1))
    elif damage == "a field":
        checksums.write_json(path, content | {"rounds": [{"kind": "search"}]})
    else:
        content["rounds"][0]["trials"][0][0][1] = ["x"]
        checksums.write_json(path, content)
    with pytest.raises(UserError, match=r"debias\.json: .*delete it, and the search starts anew"):
        edit.run(config, workdir)
