"""The curves of docs/results.md, from its table, `docs/data/results.csv`.

A method's name stands at the end of its line. Hollow marks are models that the guard calls broken,
bands are 95 % intervals where the table has them.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.evaluation.drawing.png import compact
from emcid_jax.reporting.plots.theme import BLUE, GREEN, GREY, INK, ORANGE, STYLE
from emcid_jax.storage.files import write_atomically

PANELS = {
    "h": "H",
    "acc_s": "held out",
    "shown_unseen": "edit success, unseen sentences",
}
METHODS = {
    "EMCID, concept units": ("concept units", ORANGE, "o", "-"),
    "EMCID, null space": ("null space", GREEN, "^", "-"),
    "EMCID": ("EMCID (ridge)", BLUE, "s", "-"),
    "one layer (ReFACT-like)": ("one layer", "#CC79A7", "v", "--"),
    "UCE, replace, names protected": ("UCE", "#B08A00", "D", "--"),
    "text encoder fine-tuned": ("fine-tuned", INK, "p", ":"),
}
"""Rows of the table that are drawn: label, colour (Okabe and Ito's, and ink), marker, line."""
COUNTS = (10, 100, 300, 1000, 2000)
"""Numbers of requests that all methods were measured at."""


class Figure(NamedTuple):
    """One figure of a method, and the ends of its interval if the table has them."""

    value: float
    low: float | None
    high: float | None


Figures = Mapping[tuple[str, str], Mapping[int, Figure]]
"""By method and metric, by number of requests."""


def read(text: str) -> Figures:
    """The figures of a table with the columns n, method, metric, value, low and high."""
    found: dict[tuple[str, str], dict[int, Figure]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        low, high = (float(row[end]) if row[end] else None for end in ("low", "high"))
        one = found.setdefault((row["method"], row["metric"]), {})
        one[int(row["n"])] = Figure(float(row["value"]), low, high)
    return found


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Places for labels: as near to `heights` as it goes, in their order, `gap` apart or more.

    Labels that would overlap form a group around the mean of their heights.

    >>> spread([0.5, 0.0, 0.02], 0.1)
    [0.5, -0.04, 0.06]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []

    def lowest(group: list[int]) -> float:
        return sum(heights[i] for i in group) / len(group) - gap * (len(group) - 1) / 2

    for i in order:
        groups.append([i])
        while len(groups) > 1 and lowest(groups[-1]) < lowest(groups[-2]) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    places = {i: lowest(group) + gap * j for group in groups for j, i in enumerate(group)}
    return [round(places[i], 9) for i in range(len(heights))]


def draw(figures: Figures) -> bytes:
    """The panels side by side, as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    with mpl.rc_context({**STYLE, "font.size": 8}):
        sheet = Sheet(figsize=(9.4, 2.9), layout="constrained")
        FigureCanvasAgg(sheet)
        for axes, metric in zip(sheet.subplots(1, len(PANELS)), PANELS, strict=True):
            _lines(axes, figures, metric)
            _frame(axes, PANELS[metric])
        buffer = io.BytesIO()
        sheet.savefig(buffer, format="png", dpi=130)
    return compact(buffer.getvalue())


def _lines(axes: Any, figures: Figures, metric: str) -> None:
    ends = []
    for method, (label, colour, marker, line) in METHODS.items():
        found = {n: one for n, one in figures[method, metric].items() if n in COUNTS}
        axes.plot(list(found), [one.value for one in found.values()], color=colour, ls=line, lw=1.5)
        for n, one in found.items():
            face = colour if figures[method, "intact"][n].value else "white"
            axes.plot(n, one.value, marker, ms=4.5, mfc=face, mec=colour, mew=1.1)
        bands = [(one.low, one.high) for one in found.values() if one.low is not None]
        if len(bands) == len(found):  # A part of a line would look like its certain part.
            axes.fill_between(
                list(found), *zip(*bands, strict=True), color=colour, alpha=0.15, lw=0
            )
        last, values = list(found)[-1], [one.value for one in found.values()]
        if last == COUNTS[-1]:
            ends.append((label, colour, values[-1]))
        else:
            above = values[-1] > values[0]
            place = {"ha": "right", "va": "bottom" if above else "top", "size": 7.5}
            where = (-6, 4 if above else -4)
            text = {"textcoords": "offset points", "color": colour, **place}
            axes.annotate(label, (last, values[-1]), where, **text)
    places = spread([value for _, _, value in ends], 0.075)
    for (label, colour, value), place in zip(ends, places, strict=True):
        text = {"va": "center", "size": 7.5, "annotation_clip": False, "color": colour}
        lead = {"arrowstyle": "-", "color": colour, "lw": 0.5}
        where = (COUNTS[-1] * 1.5, place)
        axes.annotate(label, (COUNTS[-1], value), where, arrowprops=lead, **text)


def _frame(axes: Any, title: str) -> None:
    axes.set_title(title, size=9)
    axes.set_xscale("log")
    axes.set_xticks(COUNTS, ("10", "100", "300", "1k", "2k"))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("requests")
    axes.tick_params(color=GREY)
    axes.set_ylim(-0.03, 1.03)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m studies.results_curves", description=__doc__)
    parser.add_argument("--table", type=Path, default=Path("docs/data/results.csv"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/results_curve.png"))
    args = parser.parse_args(arguments)
    write_atomically(args.picture, draw(read(args.table.read_text("utf8"))))


if __name__ == "__main__":
    main()
