"""Heat maps as PNG: size, colours that say the value, empty cells."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from emcid_jax.reporting.plots import heat_maps
from emcid_jax.reporting.plots.heat_maps import Panel


def test_cells_have_the_colours_of_their_values() -> None:
    values = np.array([[0.0, 0.25], [1.0, np.nan]])
    panel = Panel("shares", values, (3, 7), (0, 1), "last", "first")
    png = heat_maps.heat_maps([panel] * 3)
    assert png == heat_maps.heat_maps([panel] * 3)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
    for value in (0.0, 0.25, 1.0):
        wanted = mpl.colormaps["cividis"](value, bytes=True)[:3]
        assert tuple(int(part) for part in wanted) in colours, value
    assert len(png) < 100_000
