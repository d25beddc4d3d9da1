"""From requests to gates: closed form, held against captions, then against each other.

A gate depends on its own request and the encoder's statistics, and on the names that it could take
for its own: those that score above `gates.LOW` with it. The report lists them. All other requests
may come and go without changing a bit of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.encoder.hidden_units import WIDTH
from emcid_jax.editing.stage_two.gate_report import GateReport, UnitsReport
from emcid_jax.editing.units import gates, recognise
from emcid_jax.editing.units.names import Names, Strangers, find_names
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.editing.units.told import inside, mistaken, shared
from emcid_jax.models.text.encoder import TextEncoder

FLOOR = StageTwoConfig.gate_threshold
"""Lowest threshold, unless the user asks for another."""
LEAST = 0.4
"""Score of the closed form from which on a caption's token is held against a gate."""
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
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    keep: Sequence[str],
    statistics: UnitStatistics,
    *,
    contexts: int,
    false_firing: float,
    floor: float = FLOOR,
    all_strangers: bool = False,
) -> FittedGates:
    """A gate for every request.

    Args:
        encoder: the base model's text encoder.
        requests: what is edited.
        keep: names that no gate may answer to.
        statistics: of the block that gets the units.
        contexts: beginnings of captions per name, beside its templates.
        false_firing: share of the captions' tokens at which one gate may answer wrongly.
        floor: lowest threshold.
        all_strangers: whether gates are held against strangers of all names of several tokens, see
            `strangers`: fewer answer wrongly, at the cost of recall.

    Raises:
        UserError: a source that does not fit the model.
    """
    space = gates.metric(statistics)
    names = find_names(encoder, requests, keep, statistics, space, contexts, all_strangers)
    spoken = recognise.own_rows(encoder.tokenizer, names.texts[: names.sources], statistics.recent)
    return fit_names(
        names, spoken, requests, statistics, space, false_firing=false_firing, floor=floor
    )


def fit_names(
    names: Names,
    spoken: Sequence[Int[np.ndarray, " _"]],
    requests: Sequence[EditRequest],
    statistics: UnitStatistics,
    space: gates.Metric,
    *,
    false_firing: float,
    floor: float = FLOOR,
) -> FittedGates:
    """A gate for every request, from states alone: of any encoder whose attention is causal.

    Args:
        names: sources, destinations and names to keep, in `space`.
        spoken: rows of the reference where each source itself stands.
        requests: what is edited.
        statistics: of the block that gets the units.
        space: `gates.metric` of the statistics.
        false_firing: share of the captions' tokens at which one gate may answer wrongly.
        floor: lowest threshold.
    """
    others = _others(names, spoken, statistics, space)
    parts = [
        slice(begin, min(begin + gates.CHUNK, names.sources))
        for begin in range(0, names.sources, gates.CHUNK)
    ]
    # NumPy works outside Python's lock, and chunks know nothing of each other.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = list(
            pool.map(lambda part: _fitted(names, others, part, false_firing, floor), parts)
        )
    fitted = _Fitted(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))
    tokens, longer = len(others.held_out), inside(names)
    reports = [
        GateReport(
            request.source,
            float(fitted.thresholds[gate]),
            float((fitted.scores[gate] > fitted.thresholds[gate])[names.mask[gate]].mean()),
            float(fitted.scores[gate].min()),
            float((fitted.passed[gate] >= 0).sum() / tokens),
            mistaken(
                names,
                requests,
                gate,
                np.unique(others.owner[fitted.close[gate][fitted.close[gate] >= 0]]),
                fitted.first[gate],
                fitted.final[gate],
                float(fitted.thresholds[gate]),
            ),
            spoken=len(spoken[gate]) / len(statistics.reference),
            inside=longer[gate],
        )
        for gate, request in enumerate(requests)
    ]
    return FittedGates(
        gates.in_states(fitted.final, space),
        fitted.thresholds,
        np.clip((fitted.scores[:, 0] - fitted.thresholds + WIDTH) / WIDTH, 0.0, 1.0),
        UnitsReport(
            tuple(shared(reports)), np.count_nonzero(np.unique(fitted.passed) >= 0) / tokens, tokens
        ),
    )


class _Others(NamedTuple):
    """What no gate may answer to: tokens of captions, and the names of the edit."""

    seen: Float[np.ndarray, "row dim"]
    """Half of the reference, which gates are fitted against."""
    held_out: Float[np.ndarray, "row dim"]
    """The other half, which sets thresholds: what is reached there is reached elsewhere too."""
    spoken_seen: list[Int[np.ndarray, " _"]]
    """Rows of the first half where the source itself stands."""
    spoken: list[Int[np.ndarray, " _"]]
    """The same of the other half."""
    rows: Float[np.ndarray, "row dim"]
    """Contexts of all names."""
    owner: Int[np.ndarray, " row"]
    mine: list[Int[np.ndarray, " _"]]
    """Rows of each source's own contexts."""


class _Fitted(NamedTuple):
    first: Float[np.ndarray, "gate dim"]
    final: Float[np.ndarray, "gate dim"]
    thresholds: Float64[np.ndarray, " gate"]
    scores: Float[np.ndarray, "gate context"]
    """Of own contexts; inf where there is none."""
    close: Int[np.ndarray, "gate row"]
    """Rows of other names that it was held against, or -1."""
    passed: Int[np.ndarray, "gate row"]
    """Rows of the held-out half at which it answers, or -1."""


def _others(
    names: Names,
    spoken: Sequence[Int[np.ndarray, " _"]],
    statistics: UnitStatistics,
    space: gates.Metric,
) -> _Others:
    seen, held_out = (
        space.whiten(statistics.reference[None, half::2].astype(np.float32))[0] for half in (0, 1)
    )
    spoken_seen, spoken_held = ([rows[rows % 2 == i] // 2 for rows in spoken] for i in (0, 1))
    rows, owner = names.rows()
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(names.sources + 1))
    mine = [order[low:high] for low, high in itertools.pairwise(bounds)]
    return _Others(seen, held_out, spoken_seen, spoken_held, rows, owner, mine)


def _fitted(
    names: Names, others: _Others, part: slice, false_firing: float, floor: float
) -> _Fitted:
    """The gates of the sources `part`: at most `gates.CHUNK`, so memory does not grow with them."""
    own, mask = names.own[part], names.mask[part]
    seen, unseen = (Strangers(*(array[part] for array in one)) for one in names.strangers)
    first = gates.start(own, mask)
    near, near_scores = gates.nearest(first, others.seen, others.spoken_seen[part], LEAST)
    negatives = np.concatenate([others.seen[near], seen.states], axis=1)
    counted = np.concatenate([np.isfinite(near_scores), seen.mask], axis=1)
    final = gates.moved(first, own, mask, negatives, counted)
    # What the moved gates score high: other names, and tokens that the closed form did not.
    close, close_scores = gates.nearest(final, others.rows, others.mine[part], gates.LOW)
    more, more_scores = gates.nearest(final, others.seen, others.spoken_seen[part], gates.LOW)
    more_scores[(more[:, :, None] == near[:, None]).any(axis=2)] = -np.inf
    found = np.isfinite(np.concatenate([close_scores, more_scores], axis=1))
    again = np.flatnonzero(found.any(axis=1))
    added = others.rows[close[again]], others.seen[more[again]]
    final[again] = gates.moved(
        first[again],
        own[again],
        mask[again],
        np.concatenate([negatives[again], *added], axis=1),
        np.concatenate([counted[again], found[again]], axis=1),
    )
    scores = np.where(mask, np.matmul(own, final[:, :, None])[..., 0], np.inf)
    allowed = int(false_firing * len(others.held_out))
    low, count = floor - MARGIN, gates.NEGATIVES + allowed
    passed, tokens = gates.nearest(final, others.held_out, others.spoken[part], low, count)
    _, by_names = gates.nearest(final, others.rows, others.mine[part], low, 1)
    strange = np.matmul(unseen.states, final[:, :, None])[..., 0]
    strange = np.where(unseen.mask, strange, -np.inf).max(axis=1)
    thresholds = _thresholds(scores, tokens, np.maximum(by_names[:, 0], strange), allowed, floor)
    passed[tokens <= thresholds[:, None]] = -1
    close[~np.isfinite(close_scores)] = -1
    return _Fitted(first, final, thresholds, scores, close, passed)


def _thresholds(
    scores: Float[np.ndarray, "gate context"],
    near: Float[np.ndarray, "gate row"],
    other: Float[np.ndarray, " gate"],
    allowed: int,
    floor: float,
) -> Float64[np.ndarray, " gate"]:
    """Above all that must not pass, as far as a name's own contexts, but for one, leave room."""
    ranked = -np.sort(-near, axis=1)
    barred = np.maximum(ranked[:, min(allowed, ranked.shape[1] - 1)], other) + MARGIN
    room = np.sort(scores, axis=1)[:, min(1, scores.shape[1] - 1)] - 2 * MARGIN
    return np.clip(barred, floor, np.maximum(room, floor)).astype(np.float64)
