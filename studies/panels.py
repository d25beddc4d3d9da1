"""Rows of panels with lines or dots, as PNG: a page wide, readable in print, colour-blind safe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.reporting.plots.theme import BLUE, GREEN, GREY, INK, ORANGE, STYLE
from emcid_jax.storage.files import write_atomically

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK, GREY)
"""Okabe and Ito's, and two neutrals."""
MARKS = "os^Dv<>P*"
PAGE = 9.0
"""Inches of a page's width."""


class Line(NamedTuple):
    """A series; colour and marker go by its number, so that one label looks alike in all panels."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    number: int
    style: str = "-"
    """Of the line: `-`, `--`, `:`; empty: dots alone. Without a label it is a line alone."""


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    lines: Sequence[Line]
    x_label: str
    log: str = ""
    """Axes that are logarithmic: `x`, `y`, `xy` or none."""
    y_range: tuple[float | None, float | None] = (-0.03, 1.03)
    ticks: Sequence[str] = ()
    """Names of the places 0, 1, ... of the horizontal axis; empty: numbers."""


def draw(panels: Sequence[Panel], path: Path, *, across: int = 3, columns: int = 3) -> None:
    """PNG of the panels in rows of `across`, under a legend of `columns` for all of them."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(panels) // across)
    with mpl.rc_context({**STYLE, "font.size": 8.5}):
        figure = Figure(figsize=(PAGE, 0.45 + 2.6 * down), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        shown: dict[str, Any] = {}
        for axes in grid.flat:
            marks = zip(*axes.get_legend_handles_labels(), strict=True)
            shown |= {label: mark for mark, label in marks}
        figure.legend(
            shown.values(), shown.keys(), loc="outside upper center", ncols=min(columns, len(shown))
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _draw(axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        mark = MARKS[line.number % len(MARKS)] if line.label else ""
        look = {"marker": mark, "ms": 3.5, "lw": 1.4, "ls": line.style or "none"}
        axes.plot(
            line.x, line.y, color=COLOURS[line.number % len(COLOURS)], label=line.label, **look
        )
    axes.set_title(panel.title, size=8.5)
    axes.set_xlabel(panel.x_label)
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    axes.set_ylim(*panel.y_range)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
