"""Figures of the report as SVG bytes: colour-blind-safe, no global matplotlib state."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.runtime.terminal import printable

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9AA3AB", "#22303C"
"""Okabe and Ito's colours, told apart with any colour vision, and two neutrals."""

STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7EAED",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "emcid_jax",
}


def name_text(name: str, most: int = 28) -> str:
    """A name as a figure's text: cut to `most` characters, printable, no dollar begins a formula.

    Names are the users' own; all that reach matplotlib go through here.
    """
    short = name if len(name) <= most else name[: most - 1] + "…"
    return printable(short).replace("\n", " ").replace("$", r"\$")


class LayerBar(NamedTuple):
    """One layer of Stage II for `layers_figure`."""

    layer: int
    asked: float
    """Root mean square of the requested residual."""
    left: float
    """What it left unwritten of it."""
    change: float
    """|dW| / |W|."""


def loss_figure(curves: Float[np.ndarray, "request step"], floor: float = 1e-6) -> bytes:
    """Stage I: training loss against step, median and spread over requests, log scale."""

    def draw(axes: Any) -> None:
        values = np.maximum(curves, floor)
        steps = np.arange(values.shape[1])
        low, quarter, middle, upper, high = np.quantile(
            values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0
        )
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.12, lw=0, label="90 % of requests")
        axes.fill_between(steps, quarter, upper, color=BLUE, alpha=0.25, lw=0, label="half of them")
        axes.plot(steps, middle, color=BLUE, lw=1.8, label="median")
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.margins(x=0.01)
        axes.legend(loc="upper right")

    return svg(draw)


def layers_figure(layers: Sequence[LayerBar]) -> bytes:
    """Stage II: per layer the residual requested and left, and below it the weights' change."""

    def draw(top: Any, bottom: Any) -> None:
        place = np.arange(len(layers))
        top.bar(place - 0.2, [bar.asked for bar in layers], 0.38, color=BLUE, label="requested")
        top.bar(place + 0.2, [bar.left for bar in layers], 0.38, color=ORANGE, label="left")
        top.set_ylabel("residual norm")
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
        bottom.bar(place, [100 * bar.change for bar in layers], 0.6, color=GREEN)
        bottom.set_ylabel("|ΔW| / |W|, %")
        bottom.set_xlabel("edited block")
        bottom.set_xticks(place, [str(bar.layer) for bar in layers])
        for axes in (top, bottom):
            axes.grid(axis="x", visible=False)

    return svg(draw, rows=2)


def scores_figure(
    before: Float[np.ndarray, " request"], after: Float[np.ndarray, " request"]
) -> bytes:
    """Destination probability on source prompts before and after, requests sorted by the latter."""

    def draw(axes: Any) -> None:
        order = np.argsort(-after, kind="stable")
        place = np.arange(1, len(order) + 1)
        size = float(np.clip(600 / max(len(order), 1), 6, 40))
        axes.vlines(place, before[order], after[order], color="#C9D3DB", lw=1.2)
        axes.scatter(place, before[order], s=size, color=ORANGE, label="before", lw=0, zorder=3)
        axes.scatter(place, after[order], s=size, color=BLUE, label="after", lw=0, zorder=3)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("request, sorted")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("P(destination)")
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0, markerscale=2
        )
        axes.margins(x=0.01)

    return svg(draw, size=(9.6, 3.0))


def svg(draw: Callable[..., None], rows: int = 1, size: tuple[float, float] = (6.4, 4.2)) -> bytes:
    """Run `draw` on fresh axes, one per row, and return the SVG file; same input, same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(*np.atleast_1d(figure.subplots(rows, 1, sharex=rows > 1)).tolist())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
