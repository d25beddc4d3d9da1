"""From requests to gates: closed form, held against captions, then against each other.

A gate depends on its own request and the encoder's statistics, and on the names that it could take
for its own: those that score above `gates.LOW` with it. The report lists them. All other requests
may come and go without changing a bit of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.concepts.conflicts import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.encoder.hidden_units import WIDTH
from emcid_jax.editing.stage_two.gate_report import GateReport, Mistaken, Relation, UnitsReport
from emcid_jax.editing.units import gates, recognise
from emcid_jax.editing.units.names import Names, find_names
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.pipelines.pipeline import Pipeline

FLOOR = 0.65
"""Lowest threshold."""
MARGIN = 0.02
"""Thresholds stand so far above what must not pass, and twice as far below own contexts."""


@dataclasses.dataclass(frozen=True, eq=False)
class FittedGates:
    """Gates in the encoder's own states; row i is request i's."""

    directions: Float64[np.ndarray, "gate dim"]
    thresholds: Float64[np.ndarray, " gate"]
    reached: Float64[np.ndarray, " gate"]
    """How far the ramp is open at the request's first prompt: 1 is fully."""
    report: UnitsReport


def fit_gates(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    keep: Sequence[str],
    statistics: UnitStatistics,
    *,
    contexts: int,
    false_firing: float,
) -> FittedGates:
    """A gate for every request.

    Args:
        pipeline: the base model.
        requests: what is edited.
        keep: names that no gate may answer to.
        statistics: of the block that gets the units.
        contexts: beginnings of captions per name, beside its templates.
        false_firing: share of the captions' tokens at which one gate may answer wrongly.

    Raises:
        UserError: a source that does not fit the model.
    """
    space = gates.metric(statistics)
    names = find_names(pipeline, requests, keep, statistics, space, contexts)
    count = names.sources
    own, mask = names.own[:count], names.mask[:count]
    reference = space.whiten(statistics.reference[None].astype(np.float32))[0]
    spoken = recognise.own_rows(pipeline.tokenizer, names.texts[:count], statistics.recent)
    rows, owner = names.rows()
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(count + 1))
    mine = [order[low:high] for low, high in itertools.pairwise(bounds)]

    first = gates.start(own, mask)
    near, near_scores = gates.nearest(first, reference, spoken)
    alone = gates.moved(first, own, mask, reference[near], np.isfinite(near_scores))
    close, close_scores = gates.nearest(alone, rows, mine)
    disputed = np.flatnonzero((close_scores > gates.LOW).any(axis=1))
    final = alone.copy()
    final[disputed] = gates.moved(
        first[disputed],
        own[disputed],
        mask[disputed],
        np.concatenate([reference[near[disputed]], rows[close[disputed]]], axis=1),
        np.concatenate(
            [np.isfinite(near_scores[disputed]), close_scores[disputed] > gates.LOW], axis=1
        ),
    )
    scores = np.where(mask, np.matmul(own, final[:, :, None])[..., 0], np.inf)
    allowed = int(false_firing * len(reference))
    near, near_scores = gates.nearest(final, reference, spoken, gates.NEGATIVES + allowed)
    _, other_scores = gates.nearest(final, rows, mine, 1)
    thresholds = _thresholds(scores, near_scores, other_scores[:, 0], allowed)

    passed = near_scores > thresholds[:, None]
    wrong = np.unique(near[passed]).size / len(reference)
    reports = []
    disputes = {gate: close[gate][close_scores[gate] > gates.LOW] for gate in disputed.tolist()}
    for gate, request in enumerate(requests):
        others = np.unique(owner[disputes[gate]]).tolist() if gate in disputes else []
        threshold = float(thresholds[gate])
        reports.append(
            GateReport(
                request.source,
                threshold,
                float((scores[gate] > threshold)[mask[gate]].mean()),
                float(scores[gate].min()),
                float(passed[gate].mean() * near.shape[1] / len(reference)),
                tuple(
                    _mistaken(names, requests, gate, other, first[gate], final[gate], threshold)
                    for other in others
                ),
            )
        )
    return FittedGates(
        gates.in_states(final, space),
        thresholds,
        np.clip((scores[:, 0] - thresholds + WIDTH) / WIDTH, 0.0, 1.0),
        UnitsReport(tuple(_shared(reports)), wrong, len(reference)),
    )


def _thresholds(
    scores: Float[np.ndarray, "gate context"],
    near: Float[np.ndarray, "gate row"],
    other: Float[np.ndarray, " gate"],
    allowed: int,
) -> Float64[np.ndarray, " gate"]:
    """Above all that must not pass, as far as a name's own contexts, but for one, leave room."""
    ranked = -np.sort(-near, axis=1)
    barred = np.maximum(ranked[:, min(allowed, ranked.shape[1] - 1)], other) + MARGIN
    room = np.sort(scores, axis=1)[:, min(1, scores.shape[1] - 1)] - 2 * MARGIN
    return np.clip(barred, FLOOR, np.maximum(room, FLOOR)).astype(np.float64)


def _mistaken(
    names: Names,
    requests: Sequence[EditRequest],
    gate: int,
    other: int,
    first: Float[np.ndarray, " dim"],
    final: Float[np.ndarray, " dim"],
    threshold: float,
) -> Mistaken:
    own = names.own[other][names.mask[other]]
    fitted = own @ final
    return Mistaken(
        names.texts[other],
        _relation(names, requests, gate, other),
        float((own @ first).max()),
        float(fitted.max()),
        float((fitted > threshold).mean()),
    )


def _relation(names: Names, requests: Sequence[EditRequest], gate: int, other: int) -> Relation:
    if other >= names.sources:
        return "kept"
    mine, theirs = (normalised(names.texts[i]) for i in (gate, other))
    if f" {mine}".endswith(f" {theirs}") or f" {theirs}".endswith(f" {mine}"):
        return "nested"
    dests = [{normalised(dest) for dest in requests[i].dests} for i in (gate, other)]
    return "same destination" if dests[0] == dests[1] else "near"


def _shared(reports: Sequence[GateReport]) -> list[GateReport]:
    """The reports, with names that need no unit of their own told so.

    A name needs none where the gate of an earlier one, which leads to the same destination and has
    a unit, answers in all of its contexts.
    """
    result: list[GateReport] = []
    units = {
        normalised(other.name): gate.source
        for gate in reversed(reports)
        for other in gate.mistaken
        if other.relation == "same destination" and other.fires == 1.0
    }
    with_unit: set[str] = set()
    for gate in reports:
        shares = units.get(normalised(gate.source), "")
        if shares not in with_unit:
            shares = ""
        if not shares:
            with_unit.add(gate.source)
        result.append(dataclasses.replace(gate, shares=shares))
    return result
