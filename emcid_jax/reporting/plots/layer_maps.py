"""Heat maps over ranges of edited layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emcid_jax.reporting.plots.heat_maps import Panel

TEXT = {
    "edited": "edited names read as the destination",
    "kept": "unedited names read as themselves",
    "gap": "distance to destination (1: not moved)",
    "drift": "drift of unedited names",
}


IMAGES = {
    "generalization_source2dest": "images: generalization Source2Dest",
    "holdout_delta": "images: 1 + Holdout Delta",
}


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """A map per figure: last layer by first layer."""
    lasts = sorted({row["last"] for row in rows})
    firsts = range(max(lasts) + 1)

    def panel(title: str, values: Mapping[tuple[int, int], float]) -> Panel:
        grid = np.full((len(lasts), len(firsts)), np.nan)
        for (first, last), value in values.items():
            grid[lasts.index(last), first] = value
        return Panel(title, grid, lasts, firsts, "last edited layer", "first edited layer")

    found = [
        panel(title, {(row["first"], row["last"]): row[name] for row in rows})
        for name, title in TEXT.items()
    ]
    drawn = [row for row in rows if "aice" in row]
    for name, title in IMAGES.items() if drawn else ():
        shift = 1.0 if name == "holdout_delta" else 0.0
        pairs = {
            (row["first"], row["last"]): shift + row["aice"][name]["value"]
            for row in drawn
            if name in row["aice"]
        }
        found.append(panel(title, pairs))
    return found
