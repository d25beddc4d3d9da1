"""The task `trace` on the tiny model: rows, resuming, the picture, mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.evaluation.text_space import trace_runs
from emcid_jax.reporting.plots import trace_maps
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import trace
from emcid_jax.tasks.trace import TraceConfig


@pytest.fixture
def config(tiny_pipeline_folder: Path) -> TraceConfig:
    return TraceConfig(
        names=("dog", "snow", "cat", "beach", "great white shark"),
        templates=("{}", "a photo of a {}"),
        sites=("block", "mlp"),
        windows=(1, 2),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


def test_trace(config: TraceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, measure = [], trace_runs.measure

    def counted(*arguments: Any) -> Any:
        made.append(arguments[1:])
        return measure(*arguments)

    monkeypatch.setattr(trace_runs, "measure", counted)
    trace.run(dataclasses.replace(config, sites=("block",)), tmp_path)
    first = json.loads((tmp_path / "trace.json").read_text())
    assert [(row["first"], row["size"]) for row in first["rows"]] == [
        (0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 2), (2, 2),
    ]  # fmt: skip
    assert first["corrupted"]["end"]["value"] == 0
    top = [row for row in first["rows"] if row["first"] + row["size"] == 4]
    assert [row["subject"]["value"] for row in top] == pytest.approx([1, 1], abs=1e-5)
    trace.run(config, tmp_path)
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["rows"][:7] == first["rows"]
    assert [row["site"] for row in content["rows"][7:]] == ["mlp"] * 7
    lines = (tmp_path / "trace.md").read_text().splitlines()
    assert len(lines) == 2 + 14
    assert lines[2].startswith("| block | 0 | ")
    assert lines[8].startswith("| block | 2-3 | ")
    assert f"{content['rows'][6]['end']['value']:.2f} (" in lines[8]
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")

    wanted = [
        (row["site"], range(row["first"], row["first"] + row["size"])) for row in content["rows"]
    ]
    assert made == wanted  # Every row once.

    def refuse(*arguments: object) -> None:
        raise AssertionError("a row was made again")

    monkeypatch.setattr(trace_runs, "measure", refuse)
    with pytest.raises(AssertionError, match="made again"):  # Other noise, other rows.
        trace.run(dataclasses.replace(config, noise=1.0), tmp_path)


def test_a_map_has_a_cell_for_every_whole_window() -> None:
    rows = [
        {"site": "mlp", "first": first, "size": size}
        | {name: {"value": first + size / 10} for name in trace_maps.MEASURES}
        for first, size in ((0, 1), (1, 1), (2, 1), (0, 3))
    ]
    panels = trace_maps.panels(rows, 3)
    assert [panel.title for panel in panels] == [
        f"mlp: {title}" for title in trace_maps.MEASURES.values()
    ]
    nothing = np.nan
    np.testing.assert_allclose(panels[1].values, [[0.1, 1.1, 2.1], [0.3, nothing, nothing]])
    assert list(panels[1].rows) == [1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ()}, "config.names and names_path are empty"),
        ({"templates": ("dog",)}, "config.templates[0] is 'dog'; a template holds one {}"),
        ({"sites": ()}, "config.sites is empty"),
    ],
)
def test_unfit_settings_are_named(
    config: TraceConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        dataclasses.replace(config, **change).check()
    assert message in str(error.value)


def test_unfit_names_and_windows_are_named(config: TraceConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(UserError, match="give at least two names"):
        trace.run(dataclasses.replace(config, names=("dog", "dog")), folder)
    with pytest.raises(UserError, match=r"config\.windows has 5, but .* has 4 blocks"):
        trace.run(dataclasses.replace(config, windows=(1, 5)), folder)
    assert not folder.exists()


def test_names_are_picked_by_the_seed(config: TraceConfig) -> None:
    many = dataclasses.replace(config, names=(), names_path="sprites", count=100)
    found = trace._chosen(many)
    assert len(set(found)) == 100
    assert found == trace._chosen(many)
    assert found != trace._chosen(dataclasses.replace(many, seed=1))
