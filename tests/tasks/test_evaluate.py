"""The task `evaluate` on the tiny model: every method measured alike, resumed, mistakes named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emcid_jax import config as settings
from emcid_jax.baselines import uce
from emcid_jax.evaluation.benchmarks import quality
from emcid_jax.evaluation.benchmarks.quality import QualityCaption
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import evaluate
from emcid_jax.tasks.evaluate import EvaluateConfig
from emcid_jax.workflow import edit_job, methods
from emcid_jax.workflow.methods import Edited
from emcid_jax.workflow.workdir import Run

NAMES = ["dog, hound", "cat", "goldfish", "snow", "beach", "nurse"]
ROWS = (
    "EMCID:",
    "kept: keep=True",
    "UCE: method=uce uce.value=replace uce.preserve=('bird',) keep=True",
    "tuned: method=fine-tune max_requests=1 fine_tune.passes=2",
)


@pytest.fixture(scope="module")
def config(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny_judge(folder / "judge", NAMES)
    requests = [
        {"source": "dog", "dest": "cat", "templates": ["a photo of a {}"]},
        {"source": "goldfish", "dest": "beach", "templates": ["a photo of a {}"]},
    ]
    (folder / "requests.json").write_text(json.dumps(requests))
    words = ["a dog", "the snow", "a doctor", "the city", "art"]
    captions = [f"{a} and {b} in a picture of {c}" for a in words for b in words for c in words]
    (folder / "captions.txt").write_text("\n".join(captions))
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(folder / "requests.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(folder / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=1.0),
        evaluation=settings.EvaluationConfig(
            steps=1, batch=8, prompts_per_request=1, holdout=2, judge=str(folder / "judge")
        ),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    return EvaluateConfig(base=base, counts=(1, 2), rows=ROWS)


@pytest.mark.slow  # a minute: every method, then again
def test_methods_are_measured_alike_and_once(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[edit_job.Job, Edited, Sequence[str]]] = []
    solved: list[tuple[Any, ...]] = []
    solve, emcid = uce.solve, methods.emcid

    def noted_solve(*arguments: Any) -> Any:
        solved.append((*arguments, solve(*arguments)))
        return solved[-1][-1]

    def noted_emcid(job: edit_job.Job, count: int, keep: Sequence[str], run: Run) -> Edited:
        made.append((job, emcid(job, count, keep, run), keep))
        return made[-1][1]

    monkeypatch.setattr(uce, "solve", noted_solve)
    monkeypatch.setattr(methods, "emcid", noted_emcid)
    # The tiny model has no image tower: what general quality is, its own tests say.
    clip = {"before": {"value": 30.0}, "after": {"value": 29.0}}
    read = {"clip_score": clip, "fid": {"change": 4.5}}
    monkeypatch.setattr(quality, "evaluate", lambda *_, **__: read)
    captions = [QualityCaption("the snow", 0), QualityCaption("the city", 1)]
    monkeypatch.setattr(quality, "read_captions", lambda *_: captions)
    monkeypatch.setattr(quality, "load_evaluators", lambda *_: [SimpleNamespace(fingerprint="")])
    config = dataclasses.replace(config, general=True)
    evaluate.run(dataclasses.replace(config, rows=ROWS[:2]), tmp_path)
    evaluate.run(config, tmp_path)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    names = [["EMCID", "kept", "UCE", "tuned"], ["EMCID", "kept", "UCE"]]
    cells = [(count, name) for count in (1, 2) for name in names[count - 1]]
    assert [(row["count"], row["name"]) for row in rows] == cells
    assert [len(made), len(solved)] == [4, 2]  # Cells that were there are not made again.
    # The clean model is the same in every row of a count, the edited one is not.
    for count in (1, 2):
        mine = [row for row in rows if row["count"] == count]
        assert len({json.dumps(row["clean"]) for row in mine}) == 1
        assert len({json.dumps(row["aice"]["aice"]) for row in mine}) == len(names[count - 1])
    assert all(row["seconds"] > 0 and row["processor"] > 0 for row in rows)
    assert rows[0]["clean"]["clip"]["value"] == 30.0
    # UCE leaves the text encoder as it is: it has no recall by form.
    assert [bool(row["forms"]) for row in rows] == [row["name"] != "UCE" for row in rows]
    assert [rows[0]["edited"][key]["value"] for key in ("clip", "fid")] == [29.0, 4.5]
    lines = (tmp_path / "evaluation.md").read_text().splitlines()
    named = [line.split(" | ")[1] for line in lines[2:]]
    assert named == ["unedited", *names[0], "unedited", *names[1]]
    assert (tmp_path / "evaluation.csv").read_text().startswith("n,method,metric,value,low,high\n")
    records = json.loads((tmp_path / "cells" / "2-uce.json").read_text())
    assert [one["source"] for one in records["records"]] == ["dog", "goldfish"]
    for folder in ("before", "after-2-uce"):
        for one in records["records"]:
            assert (tmp_path / "images" / "comparison" / folder / one["picture"]).exists()

    # Told are half of the untouched names and the destinations, judged the other half.
    assert [keep for _, _, keep in made if keep] == [("snow", "cat"), ("snow", "cat", "beach")]
    assert [one["name"] for one in records["held"]] == ["nurse"]
    # UCE's row is the closed form on the first requests; the text encoder stays as it is.
    _, requests, keep, options, found = solved[1]
    assert [request.source for request in requests] == ["dog", "goldfish"]
    assert (keep, options.value) == (["bird", "snow", "cat", "beach"], "replace")
    assert rows[-1]["edit"]["condition"] == found.condition


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("method=uce", "has no name; write NAME: OVERRIDES"),
        ("A: keep=True", "has the name of another row"),
        ("x: keep=True method=fine-tune", "'fine-tune' protects no names"),
        ("x: method=fine-tune stage_one.objective=attention", "noise and text losses alone"),
        ("x: method=uec", "config.method is 'uec'"),
        ("x: method.a=1", "'method.a=1' is no override"),
        ("x: uce=1", "'uce=1' is no override"),
        ("x: uce.valeu=1", "config.uce.valeu is unknown; did you mean value"),
        ("x: moments.count=5", "'moments.count=5' is no override"),
        ("x: stage_two.layers=(1,)", "config.stage_two.layers is (1,)"),
    ],
)
def test_unfit_rows_are_named(config: EvaluateConfig, row: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        dataclasses.replace(config, rows=("a:", row)).check()
    assert message in str(error.value)


def test_a_comparison_needs_its_evaluation(config: EvaluateConfig) -> None:
    off = dataclasses.replace(config.base.evaluation, enabled=False)
    base = dataclasses.replace(config.base, evaluation=off)
    with pytest.raises(UserError, match=r"config\.base\.evaluation\.enabled"):
        dataclasses.replace(config, base=base).check()


def test_requests_it_cannot_compare_are_named(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.counts has 3, but there are 2 requests"):
        evaluate.prepare(dataclasses.replace(config, counts=(1, 3)))
    mixed = {"source": "nurse", "dest": ["a dog", "a cat"], "task": "debias", "ratios": [0.5, 0.5]}
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([mixed]))
    requests = settings.RequestsConfig(path=str(path))
    base = dataclasses.replace(config.base, requests=requests)
    with pytest.raises(UserError, match="debias"):
        evaluate.prepare(dataclasses.replace(config, base=base, counts=(1,)))
