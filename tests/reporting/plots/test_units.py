"""The curve of blocks: every share has its mark, and the chosen block's is another one."""

from __future__ import annotations

import re

from emcid_jax.reporting.plots.theme import BLUE, ORANGE
from emcid_jax.reporting.plots.units import separability_figure


def marks(svg: bytes, colour: str) -> list[tuple[float, float]]:
    """Where the marks of a colour lie, x to the right and y downward."""
    uses = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+)', svg.decode())
    return [(float(x), float(y)) for x, y, found in uses if found == colour.lower()]


def test_the_chosen_block_is_marked() -> None:
    shares = (0.5, 1.0, 0.25, 0.0)
    svg = separability_figure(shares, 2)
    points = marks(svg, BLUE)
    assert len(points) == len(shares)
    heights = [y for _, y in points]
    unit = heights[3] - heights[1]
    for share, height in zip(shares, heights, strict=True):
        assert abs((heights[3] - height) / unit - share) < 1e-3
    assert points[2] in marks(svg, ORANGE)
    assert separability_figure(shares, 2) == svg
