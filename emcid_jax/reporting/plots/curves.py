"""Figures of a comparison over the number of requests: told apart in print and by any eye."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from emcid_jax.evaluation.drawing.png import compact
from emcid_jax.reporting.plots.theme import BLUE, GREEN, GREY, INK, ORANGE, STYLE, name_text

PAGE = 7.5
"""Inches of a printed page's width."""
LOOKS = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "-"),
    (GREEN, "^", "-"),
    ("#CC79A7", "D", "-"),
    ("#56B4E9", "v", "--"),
    ("#E69F00", "P", "--"),
    (INK, "X", ":"),
    ("#7F8C97", "<", ":"),
    ("#8C564B", "p", "-."),
    ("#B5A300", "h", "-."),
)
"""Colour (Okabe and Ito's, then neutrals and two more), marker and line of each method in turn."""


Scale = Literal["share", "log", "linear"]


class Point(NamedTuple):
    """A figure of one method at one number of requests."""

    count: int
    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    """Drawn hollow: the model is broken."""


class Curves(NamedTuple):
    """One panel: a figure of every method."""

    title: str
    methods: Mapping[str, Sequence[Point]]
    """By number of requests, ascending."""
    scale: Scale = "share"
    """Of the values: shares go from 0 to 1, on `log` they are positive."""
    across: str = "requests"
    """What the points' counts count."""


def figure(
    panels: Sequence[Curves], names: Sequence[str], across: int = 3, kind: str = "svg"
) -> bytes:
    """The panels in rows of `across`, as wide as a page, with one legend; SVG or PNG.

    Args:
        panels: what is drawn.
        names: every method, in an order that fixes its look.
        across: panels of a row.
        kind: `svg` or `png`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    down = math.ceil(len(panels) / across)
    legend = math.ceil(len(names) / 3)
    with mpl.rc_context({**STYLE, "font.size": 8}):
        sheet = Figure(figsize=(PAGE, 2.1 * down + 0.2 * legend), layout="constrained")
        (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(sheet)
        grid = sheet.subplots(down, across, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, names)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        handles = [_line(mpl, *_look(names, name)) for name in names]
        labels = [name_text(name, 40) for name in names]
        sheet.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=3)
        buffer = io.BytesIO()
        if kind == "png":
            sheet.savefig(buffer, format="png", dpi=160)
            return compact(buffer.getvalue())
        sheet.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def exponent(points: Sequence[Point], least: int = 100) -> float | None:
    """Slope of log value over log count by least squares, from `least` on; None below 3 points."""
    rows = [(one.count, one.value) for one in points if one.count >= least and one.value > 0]
    if len({count for count, _ in rows}) < 3:
        return None
    count, value = np.log(np.array(rows, np.float64)).T
    return float(np.polyfit(count, value, 1)[0])


def _look(names: Sequence[str], name: str) -> tuple[str, str, str]:
    return LOOKS[list(names).index(name) % len(LOOKS)]


def _line(mpl: Any, colour: str, marker: str, line: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, ls=line, ms=4, lw=1.4)


def _draw(axes: Any, panel: Curves, names: Sequence[str]) -> None:
    every = sorted({point.count for points in panel.methods.values() for point in points})
    for name, points in panel.methods.items():
        if not points:
            continue
        colour, marker, line = _look(names, name)
        x, y = [one.count for one in points], [one.value for one in points]
        axes.plot(x, y, color=colour, ls=line, lw=1.4)
        for one in points:
            face = "white" if one.hollow else colour
            axes.plot(one.count, one.value, marker, ms=4, mfc=face, mec=colour, mew=1.0)
        known = [one for one in points if one.low is not None and one.high is not None]
        if known:
            ends = ([one.low for one in known], [one.high for one in known])
            axes.fill_between([one.count for one in known], *ends, color=colour, alpha=0.12, lw=0)
    axes.set_title(name_text(panel.title, 99), size=8)
    axes.set_xscale("log")
    ticks = [count for count in every if count in (1, 10, 100, 1000, 2000)] or every
    axes.set_xticks(ticks, [f"{count // 1000}k" if count >= 1000 else count for count in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(panel.across)
    axes.tick_params(color=GREY)
    if panel.scale == "share":
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_yscale(panel.scale)
