"""Figures about concept units as SVG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emcid_jax.reporting.plots.theme import BLUE, ORANGE, svg


def separability_figure(shares: Sequence[float], block: int) -> bytes:
    """Share of separable names by block; the units' own is marked."""

    def draw(axes: Any) -> None:
        axes.plot(np.arange(len(shares)), shares, "o-", color=BLUE, lw=1.8, ms=4)
        axes.plot(
            [block],
            [shares[block]],
            "o",
            color=ORANGE,
            ms=9,
            clip_on=False,
            label=f"units: block {block}",
        )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("block")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("share of names")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)

    return svg(draw, size=(9.6, 2.6))
