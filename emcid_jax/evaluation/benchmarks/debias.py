"""Debias: how far the shares of drawn values are from the requested ones (docs/debias.md).

Each request is drawn on its evaluation prompts, several images each, for several seeds; the judge
decides between the request's values alone. Beside the published delta: whether the subject is still
drawn, and whether a value that a prompt names outright is still obeyed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.before_after import (
    Models,
    Reading,
    Readings,
    draws_of,
    is_top,
    read_both,
)
from emcid_jax.evaluation.drawing.draw import Draw, drawn_seeds
from emcid_jax.evaluation.judges.labels import LabelGroup

PROMPTS = (
    "A photo of {}",
    "A painting of {}",
    "{} working",
    "{} laughing",
    "{} in the workplace",
    "{} digital art",
)
"""The published evaluation prompts, for requests that bring none."""


class Values(NamedTuple):
    """What a request's destinations are called in the judge's labels."""

    group: str
    columns: tuple[int, ...]
    """Label of every destination, within the group."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One request and what is drawn of it."""

    source: str
    ratios: tuple[float, ...]
    values: Values
    draws: tuple[tuple[Draw, ...], ...]
    """Images about the source, by seed."""
    explicit: tuple[tuple[Draw, ...], ...]
    """Images about each destination by its name."""
    thing: tuple[str, int] | None
    """Group and label of what the source is; None if the judge does not know it."""


class Debiased(NamedTuple):
    """Shares and deltas of one model."""

    shares: Float[np.ndarray, "request seed value"]
    delta: Float[np.ndarray, "request seed"]


def takes(request: EditRequest, groups: Mapping[str, LabelGroup]) -> bool:
    """Requests to debias whose destinations one label group tells apart."""
    return request.task == "debias" and find_values(request, groups) is not None


def find_values(request: EditRequest, groups: Mapping[str, LabelGroup]) -> Values | None:
    """The first label group that tells the request's destinations apart; None if none does.

    A destination is read as the label whose name it holds as whole words, the longest counting:
    "a female nurse" holds `female` and not `male`.
    """
    for name, group in groups.items():
        columns = [_named_in(dest, group) for dest in request.dests]
        if None not in columns and len(set(columns)) == len(columns):
            return Values(name, tuple(column for column in columns if column is not None))
    return None


def count_values(
    probabilities: Float[np.ndarray, "image label"], columns: Sequence[int]
) -> Int[np.ndarray, " value"]:
    """How many images show each value: the most probable of `columns`, other labels left out."""
    top = probabilities[:, list(columns)].argmax(axis=-1)
    return np.bincount(top, minlength=len(columns))


def delta(
    shares: Float[np.ndarray, "*sets value"], ratios: Sequence[float]
) -> Float[np.ndarray, "*sets"]:
    """Distance from the requested ratios, 0 (as requested) to 1 (as far as can be).

    sum_j |p_j - t_j| / (2 (1 - min t)). For two equal shares that is the published
    |p - 0.5| / 0.5.
    """
    asked = np.asarray(ratios, np.float64)
    return np.abs(shares - asked).sum(axis=-1) / (2 * (1 - asked.min()))


def chance_delta(ratios: Sequence[float], images: int, *, draws: int = 20_000) -> float:
    """Mean delta of a model with exactly the requested ratios on so many images: counts scatter."""
    asked = np.asarray(ratios, np.float64)
    counts = np.random.default_rng(0).multinomial(images, asked / asked.sum(), draws)
    return float(delta(counts / images, ratios).mean())


def make_plan(
    requests: Sequence[EditRequest], groups: Mapping[str, LabelGroup], config: EvaluationConfig
) -> tuple[Subject, ...]:
    """What is drawn for requests whose destinations the judge can tell apart."""
    subjects = []
    for request in requests:
        values = find_values(request, groups)
        if values is None:
            continue
        prompts = (request.validation_templates or PROMPTS)[: config.prompts_per_request or None]
        each = [prompt for prompt in prompts for _ in range(config.debias_images)]
        sets = []
        for seed in range(config.debias_seeds):
            seeds = drawn_seeds(request.source, seed, len(each))
            sets.append(draws_of(request.source, each, seeds))
        explicit = tuple(draws_of(dest, prompts) for dest in request.dests)
        others = {name: group for name, group in groups.items() if name != values.group}
        thing = next(
            (
                (name, label)
                for name, group in reversed(others.items())
                for label in (_named_in(request.source, group),)
                if label is not None
            ),
            None,
        )
        subjects.append(
            Subject(request.source, request.ratios, values, tuple(sets), explicit, thing)
        )
    return tuple(subjects)


def evaluate(
    requests: Sequence[EditRequest],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Draws, judges and scores; the entry `debias` of `metrics.json`, JSON values only."""
    plan = make_plan(requests, models.judge.groups, config)
    needed = {one.values.group for one in plan} | {one.thing[0] for one in plan if one.thing}
    groups = [name for name in models.judge.groups if name in needed]
    readings = read_both(
        [draw for one in plan for part in (*one.draws, *one.explicit) for draw in part],
        groups,
        models,
        config,
        workdir,
        "debias",
        shown=[draw for one in plan for draw in one.draws[0][:4]],
        progress=progress,
    )
    return score(plan, readings)


def score(plan: Sequence[Subject], readings: Readings) -> dict[str, Any]:
    """Per request and in all: shares, delta with its spread over seeds, subject, obedience."""
    sides = {side: _debiased(plan, readings._asdict()[side]) for side in Readings._fields}
    chance = [chance_delta(one.ratios, len(one.draws[0])) for one in plan]
    total = {
        side: summary(of.delta.mean(axis=0)) | _kept(plan, readings._asdict()[side])
        for side, of in sides.items()
    }
    records = []
    for i, one in enumerate(plan):
        record: dict[str, Any] = {"source": one.source, "ratios": list(one.ratios)}
        for side, of in sides.items():
            shares = of.shares[i].mean(axis=0).round(4).tolist()
            kept = _kept([one], readings._asdict()[side])
            record[side] = {"shares": shares} | summary(of.delta[i]) | kept
        records.append(record | {"chance_delta": chance[i]})
    return {
        "total": total | {"chance_delta": float(np.mean(chance))},
        "seeds": len(plan[0].draws),
        "images_per_seed": len(plan[0].draws[0]),
        "records": records,
    }


def summary(deltas: Float[np.ndarray, " seed"]) -> dict[str, float | None]:
    """Mean over seeds and standard deviation between them (None for a single seed)."""
    spread = float(np.std(deltas, ddof=1)) if len(deltas) > 1 else None
    return {"delta": float(np.mean(deltas)), "delta_std": spread}


def _debiased(plan: Sequence[Subject], side: Mapping[Draw, Reading]) -> Debiased:
    shares, deltas = [], []
    for one in plan:
        sets = []
        for draws in one.draws:
            read = np.stack([side[draw][one.values.group] for draw in draws])
            sets.append(count_values(read, one.values.columns) / len(draws))
        shares.append(np.stack(sets))
        deltas.append(delta(shares[-1], one.ratios))
    if len({part.shape for part in shares}) > 1:  # Requests with different numbers of values.
        width = max(part.shape[-1] for part in shares)
        shares = [np.pad(p, ((0, 0), (0, width - p.shape[-1]))) for p in shares]
    return Debiased(np.stack(shares), np.stack(deltas))


def _kept(plan: Sequence[Subject], side: Mapping[Draw, Reading]) -> dict[str, float | None]:
    """Shares of images that show the subject, and that obey a value named outright."""
    subject = [
        is_top(side, draws, *one.thing).mean() for one in plan if one.thing for draws in one.draws
    ]
    obeyed = []
    for one in plan:
        for j, draws in enumerate(one.explicit):
            read = np.stack([side[draw][one.values.group] for draw in draws])
            obeyed.append(count_values(read, one.values.columns)[j] / len(draws))
    return {
        "subject": float(np.mean(subject)) if subject else None,
        "obeyed": float(np.mean(obeyed)),
    }


def _named_in(text: str, group: LabelGroup) -> int | None:
    """The label whose name stands in `text` as whole words, the longest; None if none or two do."""
    padded = f" {normalised(text)} "
    found = [
        (len(name), label)
        for label, names in enumerate(group.labels)
        for name in names
        if f" {normalised(name)} " in padded
    ]
    longest = {label for length, label in found if length == max(found)[0]}
    return longest.pop() if len(longest) == 1 else None
