"""Figures that other tasks left in their work folders, for the page of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.reporting.pages.comparison import Gathered
from emcid_jax.reporting.plots import layer_maps, trace_maps
from emcid_jax.reporting.plots.curves import Curves, Point, figure
from emcid_jax.reporting.plots.heat_maps import Panel, heat_maps
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums

AICE = {
    "efficacy_source2dest": ("Source2Dest, templates", 0, 1),
    "generalization_source2dest": ("Source2Dest, sentences", 0, 1),
    "efficacy_dest_forget": ("1 - Dest Forget, templates", 1, -1),
    "holdout_delta": ("1 + Holdout Delta", 1, 1),
}
"""Maps of `ablation.json`: their title, and what is shown of a value v: a + b v."""


REMEDY = "run its task again, or leave its folder out of config.gather"


def gather(paths: Sequence[str]) -> list[Gathered]:
    """The figures of every folder, in the order given; UserError for one without any."""
    found = []
    for path in paths:
        mine = [
            make(checksums.read_json(Path(path) / name, REMEDY, older=True), path)
            for name, make in FILES.items()
            if (Path(path) / name).is_file()
        ]
        if not mine:
            raise UserError(
                f"config.gather has {path!r}, which holds none of {', '.join(FILES)}; "
                "name work folders of these tasks"
            )
        found += mine
    return found


def _layer_ranges(content: Mapping[str, Any], path: str) -> Gathered:
    rows = sorted(content["rows"], key=lambda row: (row["last"], row["first"]))
    return Gathered(
        "Which layers to edit",
        f"Every range of edited layers, measured in text space (layer_ranges, {path}).",
        heat_maps(layer_maps.panels(rows)),
        "image/png",
    )


def _trace(content: Mapping[str, Any], path: str) -> Gathered:
    panels = trace_maps.panels(content["rows"], content["blocks"])
    return Gathered(
        "Where the text encoder stores names",
        "Causal tracing: how much of a corrupted name a restored window of blocks recovers "
        f"(trace, {path}).",
        heat_maps(panels, len(trace_maps.MEASURES)),
        "image/png",
    )


def _ablation(content: Mapping[str, Any], path: str) -> Gathered:
    rows = content["rows"]
    counts = sorted({row["count"] for row in rows})
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    panels = []
    for name, (title, shift, sign) in AICE.items():
        values = np.full((len(variants), len(counts)), np.nan)
        for row in rows:
            if name in row["aice"]:
                place = variants.index(row["variant"]), counts.index(row["count"])
                values[place] = shift + sign * row["aice"][name]["value"]
        names = [_variant(variant) for variant in variants]
        panels.append(Panel(title, values, names, counts, "", "requests"))
    return Gathered(
        "Settings",
        f"AICE over settings and numbers of requests (ablate, {path}). In every map 1 is best; "
        "what the unedited model itself draws wrong lowers it.",
        heat_maps(panels, 1),
        "image/png",
    )


def _variant(variant: str) -> str:
    """A variant's overrides without the names of their sections."""
    return " ".join(part.partition(".")[2] for part in variant.split()) or "base"


def _sequential(content: Mapping[str, Any], path: str) -> Gathered:
    panels = []
    for key, title in (
        ("left_curve", "distance to destination (1: not moved)"),
        ("drift_curve", "drift of captions"),
        ("retention_curve", "retention"),
    ):
        methods = {
            _way(row): [
                Point(int(round_), float(value))
                for round_, value in zip(row["measured"], row[key], strict=False)
                if value is not None
            ]
            for row in content["rows"]
        }
        panels.append(Curves(title, methods, across="rounds"))
    names = [_way(row) for row in content["rows"]]
    return Gathered(
        "Edits in rounds",
        f"The same requests in 1 to many rounds, in text space (sequential, {path}).",
        figure(panels, names),
        "image/svg+xml",
    )


def _way(row: Mapping[str, Any]) -> str:
    return f"{row['rounds']} rounds, {row['way']}"


FILES: dict[str, Callable[[Mapping[str, Any], str], Gathered]] = {
    "trace.json": _trace,
    "layer_ranges.json": _layer_ranges,
    "ablation.json": _ablation,
    "sequential.json": _sequential,
}
"""What each task leaves, and its figure."""
