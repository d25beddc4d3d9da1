"""Figures of the text-space report as SVG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from emcid_jax.reporting.plots.theme import BLUE, GREY, ORANGE, name_text, svg


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cosines: Float[np.ndarray, "row column"],
) -> bytes:
    """Cosines of keys, 0 pale to 1 dark, negative ones as 0; a line parts edits and other names.

    The first rows are the columns' own.
    """

    def draw(axes: Any) -> None:
        axes.pcolormesh(np.maximum(cosines, 0), cmap="Blues", vmin=0, vmax=1)
        axes.axhline(len(columns), color=ORANGE, lw=1.2)
        axes.set_xticks(
            np.arange(len(columns)) + 0.5, [*map(name_text, columns)], rotation=90, size=7
        )
        axes.set_yticks(np.arange(len(rows)) + 0.5, [*map(name_text, rows)], size=7)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return svg(draw, size=(2.6 + 0.17 * len(columns), 2.2 + 0.17 * len(rows)))


def left_figure(left: Float[np.ndarray, " concept"], gap: Float[np.ndarray, " concept"]) -> bytes:
    """Relative distances to the targets and to the destinations, each sorted."""

    def draw(axes: Any) -> None:
        for values, colour, label in (
            (left, BLUE, "distance to the target at block L"),
            (gap, ORANGE, "distance to the destination's features"),
        ):
            share = (np.arange(len(values)) + 1) / len(values)
            axes.step(np.sort(values), share, color=colour, lw=1.8, label=label, where="post")
        axes.axvline(1, color=GREY, lw=1)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("relative distance (1: not moved)")
        axes.set_ylabel("share of concepts")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)

    return svg(draw)


def drift_figure(predicted: Float[np.ndarray, " name"], drift: Float[np.ndarray, " name"]) -> bytes:
    """Drift of unedited names as the keys predict it, and as it is."""

    def draw(axes: Any) -> None:
        most = max(float(predicted.max()), float(drift.max()))
        axes.plot([0, most], [0, most], color=GREY, lw=1)
        axes.scatter(predicted, drift, s=12, color=BLUE, alpha=0.6, lw=0)
        axes.set_xlabel("predicted drift")
        axes.set_ylabel("drift at block L")

    return svg(draw)
