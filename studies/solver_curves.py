"""The curves of `studies.solver_table`: what more edits cost, one line a solver."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emcid_jax.storage.files import write_atomically

PANELS = (
    ("edited", "edited names that read as their destination"),
    ("kept", "names of no request that still read as themselves"),
    ("drift", "drift of these names' final states"),
)
COLOURS = {"ridge": "#4269d0", "ridge+preserve": "#e0752d", "nullspace": "#3a9d5d"}


def draw(rows: Sequence[Mapping[str, Any]], path: Path, strength: str = "4000") -> None:
    """PNG of the rows with that lambda, over the number of edits; protected names dashed."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.4), layout="constrained")
    for axis, (field, title) in zip(axes, PANELS, strict=True):
        for solver, colour in COLOURS.items():
            mine = sorted(
                (row for row in rows if row["solver"] == f"{solver}, lambda {strength}"),
                key=lambda row: row["n"],
            )
            counts = [row["n"] for row in mine]
            axis.plot(counts, [row[field] for row in mine], "o-", ms=4, color=colour, label=solver)
            told = {"kept": "protected", "drift": "drift_protected"}.get(field)
            if told and solver == "ridge+preserve":
                axis.plot(
                    counts,
                    [row[told] for row in mine],
                    "o--",
                    ms=4,
                    color=colour,
                    label="ridge+preserve, protected names",
                )
        axis.set_xscale("log")
        axis.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1,000"))
        axis.set_xlabel("number of edits")
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 1.05 if field != "drift" else None)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8, frameon=False, loc="lower left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
