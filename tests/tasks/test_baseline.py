"""The task `baseline` on the tiny model: every method evaluated alike, resumed, mistakes named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.baselines import uce
from emcid_jax.errors import UserError
from emcid_jax.pipeline import Pipeline
from emcid_jax.tasks import baseline, edit, trial
from emcid_jax.tasks.baseline import BaselineConfig

NAMES = ["dog, hound", "cat", "goldfish", "snow", "beach", "nurse"]
ROWS = (
    "EMCID:",
    "UCE: method=uce uce.value=replace uce.preserve=('snow',)",
    "tuned: method=fine-tune fine_tune.passes=2 stage_one.objective=text-only",
)


@pytest.fixture(scope="module")
def config(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> BaselineConfig:
    folder = tmp_path_factory.mktemp("baseline")
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
        stage_two=settings.StageTwoConfig(layers=(1, 2), moment_weight=1.0),
        evaluation=settings.EvaluationConfig(
            steps=1, batch=8, prompts_per_request=1, holdout=2, judge=str(folder / "judge")
        ),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    return BaselineConfig(base=base, counts=(2,), rows=ROWS)


@pytest.mark.slow  # a minute: every method, then again
def test_methods_are_measured_alike_and_once(
    config: BaselineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[tuple[Any, ...]] = []
    judged: list[tuple[edit.Job, Pipeline]] = []
    solve, judge = uce.solve, trial.judged

    def noted_solve(*arguments: Any) -> Any:
        solved.append((*arguments, solve(*arguments)))
        return solved[-1][-1]

    def noted_judge(job: edit.Job, edited: Pipeline, workdir: Path) -> Any:
        judged.append((job, edited))
        return judge(job, edited, workdir)

    monkeypatch.setattr(uce, "solve", noted_solve)
    monkeypatch.setattr(trial, "judged", noted_judge)
    baseline.run(dataclasses.replace(config, rows=ROWS[:2]), tmp_path)
    baseline.run(config, tmp_path)
    rows = json.loads((tmp_path / "baselines.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["EMCID", "UCE", "tuned"]
    assert len(judged) == 3  # Rows that were there are not made again.
    # The clean model is the same in every row, the edited one is not.
    clean = {json.dumps([row["accuracy"]["pre_acc_e"], row["guard"]["floor"]]) for row in rows}
    assert len(clean) == 1
    forget = [row["aice"]["efficacy_source_forget"]["value"] for row in rows]
    assert len(set(forget)) == 3
    lines = (tmp_path / "baselines.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["unedited", "EMCID", "UCE", "tuned"]
    assert f" {forget[1]:.2f} " in lines[4]

    # UCE's row is the closed form on the job's requests; the text encoder stays as it is.
    ((pipeline, requests, keep, options, found),) = solved
    assert [request.source for request in requests] == ["dog", "goldfish"]
    assert (keep, options.value) == (["snow"], "replace")
    assert rows[1]["edit"]["condition"] == found.condition
    job, edited = judged[1]
    assert edited.params["text_encoder"] is job.pipeline.params["text_encoder"]
    kernels = uce.text_projections(edited.params["unet"])
    for path, kernel in uce.text_projections(pipeline.params["unet"]).items():
        np.testing.assert_allclose(kernels[path], kernel + found.deltas[path].T, atol=1e-6)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a row was made again")

    monkeypatch.setattr(uce, "solve", refuse)
    other = dataclasses.replace(config, rows=("UCE: method=uce uce.value=tensor",))
    with pytest.raises(AssertionError, match="made again"):
        baseline.run(other, tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("method=uce", "has no name; write NAME: OVERRIDES"),
        ("x: method=uec", "config.method is 'uec'"),
        ("x: method.a=1", "'method.a=1' is no override"),
        ("x: uce=1", "'uce=1' is no override"),
        ("x: uce.valeu=1", "config.uce.valeu is unknown; did you mean value"),
        ("x: moments.count=5", "'moments.count=5' is no override"),
        ("x: stage_two.layers=(1,)", "config.stage_two.layers is (1,)"),
    ],
)
def test_unfit_rows_are_named(config: BaselineConfig, row: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        dataclasses.replace(config, rows=("a:", row)).check()
    assert message in str(error.value)


def test_a_comparison_needs_its_evaluation(config: BaselineConfig) -> None:
    off = dataclasses.replace(config.base.evaluation, enabled=False)
    base = dataclasses.replace(config.base, evaluation=off)
    with pytest.raises(UserError, match=r"config\.base\.evaluation\.enabled"):
        dataclasses.replace(config, base=base).check()
