"""Figures of other tasks: what goes into them, and folders without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emcid_jax.reporting.pages import collected
from emcid_jax.reporting.plots.heat_maps import Panel
from emcid_jax.runtime.errors import UserError


def test_every_tasks_figure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Panel]] = []

    def noted(panels: list[Panel], *_: int) -> bytes:
        drawn.append(panels)
        return b"png"

    monkeypatch.setattr(collected, "heat_maps", noted)
    aice = {"efficacy_source2dest": {"value": 0.75}, "holdout_delta": {"value": -0.25}}
    aice["efficacy_dest_forget"] = {"value": 0.125}
    rows = [
        {"count": 10, "variant": "", "aice": aice},
        {"count": 100, "variant": "stage_two.layers=(10,) stage_one.steps=5", "aice": aice},
    ]
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": rows}))
    pair = {"first": 0, "last": 1, "edited": 1.0, "kept": 0.5, "gap": 0.1, "drift": 0.2}
    (tmp_path / "layer_ranges.json").write_text(json.dumps({"rows": [pair]}))
    traced = {"site": "mlp", "first": 0, "size": 1}
    traced |= {key: {"value": 0.5} for key in ("end", "subject", "read")}
    (tmp_path / "trace.json").write_text(json.dumps({"blocks": 2, "rows": [traced]}))
    row = {"rounds": 10, "way": "bank", "measured": [1, 10], "left_curve": [0.1, 0.2]}
    row |= {"drift_curve": [0.1, 0.1], "retention_curve": [None, 0.9]}
    (tmp_path / "sequential.json").write_text(json.dumps({"rows": [row]}))
    found = collected.gather([str(tmp_path)])
    assert [one.kind for one in found] == ["image/png"] * 3 + ["image/svg+xml"]
    assert b"<svg" in found[3].image
    settings = drawn[2]
    assert list(settings[0].rows) == ["base", "layers=(10,) steps=5"]
    assert list(settings[0].columns) == [10, 100]
    assert settings[0].values[0, 0] == 0.75
    assert settings[2].values[1, 1] == 0.875  # 1 - Dest Forget.
    assert settings[3].values[1, 1] == 0.75  # 1 + Holdout Delta.


def test_a_folder_without_figures_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of trace\.json"):
        collected.gather([str(tmp_path)])
