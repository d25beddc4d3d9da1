"""The text-space report as one file of HTML that needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.editing.diagnostics.predicted_conflicts import Prediction, most_similar
from emcid_jax.evaluation.text_space.measure import TextSpace
from emcid_jax.reporting.pages.render import render
from emcid_jax.reporting.plots import text_space as text_figures
from emcid_jax.reporting.plots import theme
from emcid_jax.storage.files import write_atomically

SHOWN = 20
"""Rows of a table that are not folded away."""


def write_text_report(
    path: Path, model: str, found: TextSpace, seconds: Mapping[str, float], config: Mapping
) -> None:
    """Writes the page, by one rename; arguments as in `text_report_html`."""
    write_atomically(path, text_report_html(model, found, seconds, config).encode())


def text_report_html(
    model: str, found: TextSpace, seconds: Mapping[str, float], config: Mapping[str, Any]
) -> str:
    """The page.

    Args:
        model: name of the edited model.
        found: what was measured.
        seconds: wall time per phase.
        config: the resolved settings.
    """
    left, cosine, gap = (
        np.array([getattr(one, field) for one in found.reached])
        for field in ("left", "cosine", "gap")
    )
    predicted, drift = (
        np.array([getattr(one, field) for one in found.kept]) for field in ("predicted", "drift")
    )
    bars = [theme.LayerBar(one.layer, one.asked, one.left, one.change) for one in found.layers]
    return render(
        "text_space.html",
        model=model,
        found=found,
        seconds=seconds,
        config=config,
        versions={},
        shown=SHOWN,
        left=left,
        cosine=cosine,
        drift=drift,
        left_figure=text_figures.left_figure(left, gap),
        drift_figure=text_figures.drift_figure(predicted, drift) if found.kept else None,
        layers_figure=theme.layers_figure(bars),
        key_map=_key_map(found.prediction),
    )


def conflicts_html(prediction: Prediction) -> str:
    """A page of what keys alone say of a bank, before it is solved."""
    return render(
        "conflicts.html",
        prediction=prediction,
        key_map=_key_map(prediction),
        shown=SHOWN,
        config={},
        versions={},
    )


def _key_map(prediction: Prediction) -> dict[str, Any]:
    keys = most_similar(prediction.keys)
    edits = len(keys.columns)
    return {
        "figure": text_figures.heat_map(*keys),
        "edits": edits,
        "names": len(keys.rows) - edits,
    }
