"""Heat maps of shares as PNG: readable in print and with any colour vision."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from emcid_jax.reporting.plots.theme import STYLE, name_text

PAGE = 7.5
"""Inches of a printed page's width, which the maps of a row share."""
LARGEST, NUMBERED = 0.3, 0.24
"""Inches of a cell: at most, and from which on it shows its number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One map; 0 is dark blue, 1 yellow, and what lies outside is shown as these."""

    title: str
    values: Float[np.ndarray, "row column"]
    """NaN leaves a cell empty."""
    rows: Sequence[object]
    columns: Sequence[object]
    row_label: str
    column_label: str


def heat_maps(panels: Sequence[Panel], across: int = 2, dpi: int = 160) -> bytes:
    """The panels in rows of `across`, as wide as a page, all of one scale."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(panels) // across)
    columns = max(len(panel.columns) for panel in panels)
    cell = min(LARGEST, (PAGE / across - 0.65) / columns)
    height = max(len(panel.rows) for panel in panels) * cell + 0.75
    with mpl.rc_context({**STYLE, "font.size": 7.5}):
        figure = Figure(figsize=(PAGE, down * height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False)
        drawn = [
            _draw(axes, panel, numbered=cell >= NUMBERED)
            for axes, panel in zip(grid.flat, panels, strict=False)
        ]
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        bar = figure.colorbar(drawn[0], ax=grid, fraction=0.02, pad=0.01)
        bar.outline.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, panel: Panel, *, numbered: bool) -> Any:
    image = axes.imshow(panel.values, cmap="cividis", vmin=0, vmax=1, aspect="equal")
    for (row, column), value in np.ndenumerate(panel.values) if numbered else ():
        if np.isfinite(value):
            colour = "black" if value > 0.55 else "white"
            place = {"ha": "center", "va": "center", "color": colour, "size": 6}
            axes.text(column, row, f"{round(value, 2) + 0.0:.2f}", **place)  # No -0.00.
    axes.set_title(name_text(panel.title, 99), size=7.5)
    axes.set_xticks(range(len(panel.columns)), [name_text(str(one)) for one in panel.columns])
    axes.set_yticks(range(len(panel.rows)), [name_text(str(one)) for one in panel.rows])
    axes.set_xlabel(panel.column_label)
    axes.set_ylabel(panel.row_label)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image
