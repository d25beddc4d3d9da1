"""The task `layer_ranges` on the tiny model: one bank per last layer, rows, resuming, mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.evaluation.text_space.nearest_name import make_reader
from emcid_jax.reporting.plots import layer_maps
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.tasks import layer_ranges
from emcid_jax.tasks.layer_ranges import LayerRangesConfig
from emcid_jax.workflow import edit_job
from emcid_jax.workflow import workdir as folders

PAIRS = (("dog", "cat"), ("goldfish", "beach"))


@pytest.fixture
def config(tiny_pipeline_folder: Path, tmp_path: Path) -> LayerRangesConfig:
    requests = [{"source": a, "dest": b, "templates": ["a photo of a {}"]} for a, b in PAIRS]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    words = ["a dog", "the snow", "a doctor", "the city", "art"]
    captions = [f"{a} and {b} in a picture of {c}" for a in words for b in words for c in words]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "requests.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(
            layer=2, steps=5, learning_rate=0.05, objective="text-only"
        ),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=32),
        stage_two=settings.StageTwoConfig(layers=(2,), preservation_weight=1e-2),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    return LayerRangesConfig(
        base=base, last_layers=(0, 1), keep=("snow", "nurse", "dog"), template="the {}"
    )


def test_every_range_once(
    config: LayerRangesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, made, solve = tmp_path / "out", [], edit_job.solve

    def counted(job: edit_job.Job, *rest: Any) -> Any:
        made.append(job.config.stage_two.layers)
        return solve(job, *rest)

    monkeypatch.setattr(edit_job, "solve", counted)
    layer_ranges.run(dataclasses.replace(config, last_layers=(1,)), workdir)
    layer_ranges.run(config, workdir)
    rows = json.loads((workdir / "layer_ranges.json").read_text())["rows"]
    pairs = [(0, 0), (0, 1), (1, 1)]
    assert made == [(0, 1), (1,), (0,)]  # Every range once.
    assert [(row["first"], row["last"]) for row in rows] == pairs
    assert len(list((workdir / "bank").glob("*.safetensors"))) == 2 * len(PAIRS)
    lines = (workdir / "layer_ranges.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 0-1", "| 1"]
    assert (workdir / "layer_ranges.png").read_bytes().startswith(b"\x89PNG")

    # The row of layers 0 and 1, made step by step with the memories and moments of the workdir.
    stage_one = dataclasses.replace(config.base.stage_one, layer=1)
    layers = dataclasses.replace(config.base.stage_two, layers=(0, 1))
    off = settings.EvaluationConfig(enabled=False)
    job = edit_job.prepare(
        dataclasses.replace(config.base, stage_one=stage_one, stage_two=layers, evaluation=off)
    )
    log = folders.Log(tmp_path / "log")
    run = folders.Run(config.base.run, workdir, log, make_mesh())
    edited, reports = edit_job.written(job, run)
    report = reports["text_encoder"]
    row = rows[1]
    assert row["left"] == pytest.approx(report.distance_after / report.distance_before, rel=1e-4)
    reader = make_reader(job.pipeline.encoder, job.requests, config.keep, "the {}")
    read = reader.read(edited.params["text_encoder"])
    for name, value in read._asdict().items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert row["both"] == (read.edited + read.kept) / 2

    def refuse(*arguments: object) -> None:
        raise AssertionError("a row was made again")

    monkeypatch.setattr(edit_job, "solve", refuse)
    with pytest.raises(AssertionError, match="made again"):  # Another template, other figures.
        layer_ranges.run(dataclasses.replace(config, template="a {}"), workdir)


def test_maps_are_triangles() -> None:
    rows = [
        {"first": first, "last": last} | dict.fromkeys(layer_maps.TEXT, last + first / 10)
        for first, last in ((0, 0), (0, 2), (1, 2), (2, 2))
    ]
    panels = layer_maps.panels(rows)
    assert [panel.title for panel in panels] == list(layer_maps.TEXT.values())
    nothing = np.nan
    np.testing.assert_allclose(panels[0].values, [[0, nothing, nothing], [2.0, 2.1, 2.2]])
    assert list(panels[0].rows) == [0, 2]
    drawn = {"aice": {"holdout_delta": {"value": -0.25}}}
    panels = layer_maps.panels([row | drawn for row in rows])
    assert panels[-1].title == "images: 1 + Holdout Delta"
    assert panels[-1].values[1, 2] == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": ()}, "config.keep and keep_path are empty"),
        ({"template": "x"}, "config.template is 'x'"),
    ],
)
def test_unfit_settings_are_named(
    config: LayerRangesConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        dataclasses.replace(config, **change).check()
    assert message in str(error.value)


def test_a_layer_that_is_not_there_is_named(config: LayerRangesConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.last_layers has 4, but .* blocks 0 to 3"):
        layer_ranges.run(dataclasses.replace(config, last_layers=(1, 4)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
