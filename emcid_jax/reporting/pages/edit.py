"""`report.html`: one file that needs no network, no script and no second look to be understood."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.editing.bank.memories import Memory
from emcid_jax.evaluation.benchmarks.aice.gallery import Evaluation
from emcid_jax.evaluation.benchmarks.aice.protocol import RequestRecord
from emcid_jax.evaluation.benchmarks.other_forms import FormRecall
from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.reporting.pages import units
from emcid_jax.reporting.pages.render import number, render
from emcid_jax.reporting.pages.units import WrittenUnits
from emcid_jax.reporting.plots import theme
from emcid_jax.reporting.published import (
    MEANINGS,
    PUBLISHED_REQUESTS,
    published_column,
    published_value,
)
from emcid_jax.storage.files import write_atomically

POOREST = 10
"""Memories that fit least, shown by name."""
SHOWN = 6
"""Requests shown from the top, the middle and the bottom of the ranking."""


class FoundMemory(NamedTuple):
    """What Stage I found for one request."""

    change: str
    """Source and destination."""
    memory: Memory


class Written(NamedTuple):
    """What Stage II did in one text encoder."""

    layers: Sequence[theme.LayerBar]
    """One entry per edited block."""
    distance: tuple[float, float]
    """Root mean square distance of the states to their memories before and after."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """All a report shows, as plain data; what is None or empty is left out."""

    model: str
    """Name of the edited model."""
    requests: int
    """Edit requests of the run."""
    evaluation: Evaluation | None = None
    forms: Sequence[FormRecall] = ()
    """Recall by form of the names."""
    loss_curves: Float[np.ndarray, "request step"] | None = None
    """Stage I's training losses."""
    memories: Sequence[FoundMemory] = ()
    """What Stage I found, in the order of the requests."""
    written: Mapping[str, Written] = dataclasses.field(default_factory=dict)
    """Stage II by text encoder."""
    units: Mapping[str, WrittenUnits] = dataclasses.field(default_factory=dict)
    """Concept units by text encoder."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall time per phase, in order."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The resolved settings."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Packages, commit, device."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report atomically; pictures named in `data` must exist."""
    write_atomically(path, report_html(data).encode())


def report_html(data: ReportData) -> str:
    """The whole page as text."""
    curves = data.loss_curves
    values = {
        "losses": None if curves is None or not curves.size else theme.loss_figure(curves),
        "poorest": sorted(data.memories, key=lambda one: -one.memory.left)[:POOREST],
        "bars": {
            name: theme.layers_figure(one.layers)
            for name, one in data.written.items()
            if one.layers
        },
        "gates": {name: units.shown(one) for name, one in data.units.items()},
    }
    if data.evaluation is not None:
        values |= _evaluated(data.evaluation, data.requests)
    about = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return render("edit.html", **about, **values)


def _evaluated(evaluation: Evaluation, requests: int) -> dict[str, Any]:
    """What the page shows of an evaluation beside its own fields."""
    records = evaluation.result.records
    known = [key for key in MEANINGS if key in evaluation.result.metrics]
    by_group = itertools.groupby(known, key=lambda key: MEANINGS[key].group)
    scores = [record.general or record.edit for record in records]
    before, after = (
        np.array([score[f"{side}_source_dest"] for score in scores], np.float64)
        for side in ("pre", "post")
    )
    choice, groups = _ranked(records)
    return {
        "headlines": _HEADLINES,
        "meanings": MEANINGS,
        "first_of_group": [next(keys) for _, keys in by_group],
        "nearest": PUBLISHED_REQUESTS[published_column(requests)],
        "published": published_value,
        "interval": _interval,
        "choice": choice,
        "groups": groups,
        "gain": _gain,
        "scores": theme.scores_figure(before, after) if scores else None,
    }


_HEADLINES = {
    "generalization_source2dest": (
        "Source → destination",
        "Probability that the destination gains in sentences that the edit never saw.",
    ),
    "generalization_source_forget": (
        "Source erased",
        "Probability that the source loses in the same sentences.",
    ),
    "holdout_delta": (
        "Held out",
        "Change of the right class's probability for concepts that nobody edited.",
    ),
    "average_score": (
        "Average",
        "Mean of the first and the third figure, called “F1” in the released code.",
    ),
}


def _interval(metric: Metric) -> str:
    """The 95 % interval as text, empty when there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low)} … {number(metric.high)}"


def _gain(record: RequestRecord) -> float:
    scores = record.general or record.edit
    return scores["post_source_dest"] - scores["pre_source_dest"]


def _ranked(
    records: Sequence[RequestRecord],
) -> tuple[str, Mapping[str, Sequence[RequestRecord]]]:
    """How requests were chosen, and those of every part under its title."""
    ranked = sorted(records, key=lambda record: (-_gain(record), record.index))
    if len(ranked) <= 3 * SHOWN:
        return "All requests", {f"All {len(ranked)} requests, best first": ranked}
    middle = (len(ranked) - SHOWN) // 2
    return f"{3 * SHOWN} of {len(ranked)} requests, chosen by rank and not by looks", {
        f"The {SHOWN} best": ranked[:SHOWN],
        f"The {SHOWN} around the median": ranked[middle : middle + SHOWN],
        f"The {SHOWN} worst": ranked[-SHOWN:],
    }
