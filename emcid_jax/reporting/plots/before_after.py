"""Before and after, chosen by score: the best, the median and the worst of what was judged."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.evaluation.drawing.png import compact

PARTS = ("best", "median", "worst")
Record = Mapping[str, Any]
"""An entry of a cell's `records`, see `mixed.score`."""


class Shot(NamedTuple):
    """A judged request and its pictures."""

    record: Record
    before: Path
    after: Path
    wanted: Path | None
    """The destination as the clean model draws it."""


class Grid(NamedTuple):
    """The pictures of one cell."""

    title: str
    shots: Mapping[str, Sequence[Shot]]
    """By `PARTS`."""
    judged: int
    """Requests that were ranked."""


def choose(records: Sequence[Record], each: int) -> dict[str, list[Record]]:
    """`each` records from the top, the middle and the bottom of the ranking by score."""
    ranked = sorted(records, key=lambda record: -record["score"])
    middle = max((len(ranked) - each) // 2, 0)
    return {
        "best": ranked[:each],
        "median": ranked[middle : middle + each],
        "worst": ranked[-each:],
    }


def make_grid(
    title: str, records: Sequence[Record], before: Path, after: Path, each: int = 6
) -> Grid:
    """The chosen requests of a cell whose pictures lie in the folders `before` and `after`."""

    def shot(record: Record) -> Shot:
        wanted = record["wanted"] and before / record["wanted"]
        return Shot(record, before / record["picture"], after / record["picture"], wanted)

    chosen = choose(records, each)
    return Grid(title, {part: [shot(one) for one in chosen[part]] for part in PARTS}, len(records))


def sheet(grid: Grid, dpi: int = 110) -> bytes:
    """The grid as one PNG: a column per request, before above after, in three bands."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    from emcid_jax.reporting.plots.theme import STYLE, name_text

    across = max(len(shots) for shots in grid.shots.values())
    with mpl.rc_context({**STYLE, "font.size": 6.5, "axes.grid": False}):
        page = Figure(figsize=(7.5, 7.5 / across * 2 * len(PARTS) + 1.6), layout="constrained")
        FigureCanvasAgg(page)
        axes = page.subplots(2 * len(PARTS), across, squeeze=False)
        for one in axes.flat:
            one.set_axis_off()
        for band, part in enumerate(PARTS):
            for column, shot in enumerate(grid.shots[part]):
                top, bottom = axes[2 * band, column], axes[2 * band + 1, column]
                for place, path in ((top, shot.before), (bottom, shot.after)):
                    with Image.open(path) as image:
                        place.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
                names = [name_text(str(shot.record[field]), 18) for field in ("source", "dest")]
                top.set_title(f"{names[0]}\n→ {names[1]}", size=6.5)
                bottom.set_title(f"{shot.record['score']:+.2f}", size=6.5, pad=2)
                for place, word in ((top, f"{part}, before"), (bottom, "after")):
                    if column == 0:
                        place.text(
                            -0.08, 0.5, word, rotation=90, ha="right", va="center",
                            transform=place.transAxes, size=7,
                        )  # fmt: skip
        page.suptitle(name_text(grid.title, 99), size=8)
        buffer = io.BytesIO()
        page.savefig(buffer, format="png", dpi=dpi)
    return compact(buffer.getvalue())
