"""Rectified names: how many pictures of a name that was taught wrongly show its class now?

Image sets, each drawn by the clean and by the edited model from the same seeds: *edit* (the
templates of the request), *general* (sentences the edit never saw), both about the wrong name, and
*dest* (the sentences about the destination's own name, which must stay as it is).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.before_after import (
    Models,
    Readings,
    draws_of,
    label_means,
    read_both,
)
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.bootstrap import Metric, bootstrap_mean

SETS = ("edit", "general", "dest")


@dataclasses.dataclass(frozen=True)
class Name:
    """A name to be set right, its class and the images drawn of it."""

    source: str
    dest: str
    class_id: int
    draws: tuple[tuple[Draw, ...], ...]
    """Images of each of `SETS`."""


class SetScores(NamedTuple):
    """Means over the images of one set, one entry per request."""

    pre: Float[np.ndarray, " request"]
    """P(the right class), clean model."""
    post: Float[np.ndarray, " request"]
    """The same, edited model."""
    pre_right: Float[np.ndarray, " request"]
    """Share of pictures that show the right class, clean model."""
    post_right: Float[np.ndarray, " request"]


def takes(request: EditRequest, groups: Mapping[str, LabelGroup]) -> bool:
    """Requests to rectify whose destination is an object that the judge knows."""
    return request.task == "rectify" and find_class(request, groups[OBJECT]) is not None


def find_class(request: EditRequest, labels: LabelGroup) -> int | None:
    """Class id of the destination: the request's own, else by name; None if the judge has none."""
    if request.dest_id is None:
        return labels.find(request.dests[0])
    return request.dest_id if request.dest_id < len(labels.labels) else None


def make_plan(
    requests: Sequence[EditRequest], labels: LabelGroup, config: EvaluationConfig
) -> tuple[Name, ...]:
    """What is drawn for `rectify` requests whose destinations the judge knows."""
    most = config.prompts_per_request or None
    names = []
    for request in requests:
        class_id = find_class(request, labels)
        if class_id is None:
            continue
        source, dest = request.source, request.dests[0]
        general = (request.validation_templates or SENTENCES)[:most]
        edit, seeds = request.templates[:most], request.seeds[: len(general)]
        draws = (
            draws_of(source, edit, request.seeds[: len(edit)], request.seed),
            draws_of(source, general, seeds, request.seed),
            draws_of(dest, general, seeds, request.seed),
        )
        names.append(Name(source, dest, class_id, draws))
    return tuple(names)


def evaluate(
    requests: Sequence[EditRequest],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Draws, judges and scores; the entry `rectify` of `metrics.json`, JSON values only."""
    names = make_plan(requests, models.judge.groups[OBJECT], config)
    draws = [draw for name in names for part in name.draws for draw in part]
    shown = [part[0] for name in names for part in name.draws[1:]]
    readings = read_both(
        draws, [OBJECT], models, config, workdir, "rectify", shown=shown, progress=progress
    )
    return score(names, readings)


def score(names: Sequence[Name], readings: Readings) -> dict[str, Any]:
    """Aggregates with intervals over requests, and the scores of every request."""
    scores = {name: _set_scores(names, i, readings) for i, name in enumerate(SETS)}
    return {
        "metrics": {name: metric._asdict() for name, metric in aggregates(scores).items()},
        "images": len({draw for name in names for part in name.draws for draw in part}),
        "records": [
            {"source": name.source, "dest": name.dest, "class_id": name.class_id}
            | {
                part: {field: float(getattr(of, field)[i]) for field in SetScores._fields}
                for part, of in scores.items()
            }
            for i, name in enumerate(names)
        ],
    }


def aggregates(scores: dict[str, SetScores]) -> dict[str, Metric]:
    """Per set: share of right pictures after, its gain, and the gain of the right probability.

    `edit_right`, `edit_right_gain`, `edit_gain`, and so on; for `dest` the gains are what the edit
    costs the class's own name.
    """
    found = {}
    for part, one in scores.items():
        if len(one.pre):
            before, before_right = float(np.mean(one.pre)), float(np.mean(one.pre_right))
            found[f"{part}_right"] = bootstrap_mean(one.post_right, bound=1.0)
            found[f"{part}_right_gain"] = bootstrap_mean(
                one.post_right - one.pre_right, bound=1.0 - before_right
            )
            found[f"{part}_gain"] = bootstrap_mean(one.post - one.pre, bound=1.0 - before)
    return found


def _set_scores(names: Sequence[Name], part: int, readings: Readings) -> SetScores:
    rows = [(name.draws[part], name.class_id) for name in names]
    return SetScores(*label_means(readings, rows, OBJECT))
