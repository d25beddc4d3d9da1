"""Gates: for each name a direction in which it, in any sentence, scores about 1 and others about 0.

Closed form first: with `m_j` a name's mean over its contexts, `mu` and `S_t` mean and covariance
over captions and `S_w` the covariance within a name,

    a_j = S^-1 (m_j - mu) / ((m_j - mu)^T S^-1 (m_j - mu)),     S = S_w + SHRINKAGE S_t.

In coordinates in which S is the identity this is `v_j = y_j / |y_j|^2`. From there the gate moves
as little as it must, that its own contexts score at least `HIGH` and what lies nearest to it among
other names and captions at most `LOW`:

    min |v - v_j|^2 / 2 + OWN C sum_i max(0, HIGH - v y_i) + C sum_k max(0, v y_k - LOW)

by coordinate ascent in the dual, with `C = SLACK |v_j|^2`: a context that cannot be told apart
moves the gate by a bounded part of its own length, so no gate leaves its start far behind.

Every gate is computed by itself, in shapes that depend on no other: the same bits whatever gates
are fitted beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Float64, Int

from emcid_jax.editing.units.statistics import UnitStatistics

SHRINKAGE = 0.1
"""Share of the captions' covariance in the metric."""
RIDGE = 1e-4
"""Share of the metric's mean eigenvalue on its diagonal."""
HIGH, LOW = 0.85, 0.45
"""Scores that own contexts should reach and others should not."""
SLACK = 1.0
"""What a score on the wrong side may cost, in units of the start's squared length."""
OWN = 4.0
"""How much more an own context counts."""
NEGATIVES = 32
"""Rows that lie nearest, of either kind, that a gate is held against."""
SWEEPS = 40
CHUNK = 256
"""Gates that are fitted at once."""


class Metric(NamedTuple):
    """Coordinates in which `S` is the identity."""

    mean: Float64[np.ndarray, " dim"]
    root: Float64[np.ndarray, "dim dim"]
    """`L^-1` of the Cholesky factor of `S = L L^T`."""

    def whiten(
        self, states: Float[np.ndarray, "name context dim"]
    ) -> Float[np.ndarray, "name context dim"]:
        """The states in these coordinates, float32; each name's by itself."""
        return np.matmul(states - self.mean, self.root.T).astype(np.float32)


def metric(statistics: UnitStatistics) -> Metric:
    """The coordinates that an encoder's gates are fitted in: one Cholesky factor for all."""
    return metric_of(statistics.mean, statistics.within, statistics.covariance)


def metric_of(
    mean: Float64[np.ndarray, " dim"],
    within: Float64[np.ndarray, "dim dim"],
    covariance: Float64[np.ndarray, "dim dim"],
) -> Metric:
    """The same of a mean, the covariance within names and that about the mean."""
    total = within + SHRINKAGE * covariance
    size = len(total)
    total = total + RIDGE * np.trace(total) / size * np.eye(size)
    lower = scipy.linalg.cholesky(total, lower=True)
    root = scipy.linalg.solve_triangular(lower, np.eye(size), lower=True)
    return Metric(mean, root)


def start(
    own: Float[np.ndarray, "name context dim"], mask: Bool[np.ndarray, "name context"]
) -> Float[np.ndarray, "name dim"]:
    """The closed form, from whitened contexts."""
    weights = (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)
    means = np.matmul(weights[:, None], own)[:, 0]
    return means / np.square(means).sum(axis=1, keepdims=True)


def moved(
    first: Float[np.ndarray, "name dim"],
    own: Float[np.ndarray, "name context dim"],
    mask: Bool[np.ndarray, "name context"],
    others: Float[np.ndarray, "name other dim"],
    counted: Bool[np.ndarray, "name other"],
) -> Float[np.ndarray, "name dim"]:
    """The gates nearest to `first` that keep own contexts and others apart, see above.

    `counted` is False at places of `others` that hold nothing.
    """
    signed = np.concatenate([own, -others], axis=1)
    goal = np.concatenate([np.full(own.shape[1], HIGH), np.full(others.shape[1], -LOW)])
    cost = SLACK * np.square(first).sum(axis=1, keepdims=True)
    cap = cost * np.concatenate([OWN * mask, counted], axis=1)
    gram = np.matmul(signed, signed.transpose(0, 2, 1))
    scores = np.matmul(signed, first[:, :, None])[..., 0]
    sizes = np.maximum(np.einsum("nqq->nq", gram), np.finfo(np.float32).tiny)
    weights = np.zeros_like(scores)
    # Places that hold nothing for any gate change none.
    places = np.flatnonzero(cap.any(axis=0)).tolist()
    for _ in range(SWEEPS):
        for place in places:
            step = (goal[place] - scores[:, place]) / sizes[:, place]
            step = np.clip(weights[:, place] + step, 0, cap[:, place]) - weights[:, place]
            changed = np.flatnonzero(step)
            weights[changed, place] += step[changed]
            scores[changed] += step[changed, None] * gram[changed, place]
    return first + np.matmul(weights[:, None], signed)[:, 0]


def nearest(
    directions: Float[np.ndarray, "name dim"],
    rows: Float[np.ndarray, "row dim"],
    excluded: Sequence[Int[np.ndarray, " _"]],
    least: float,
    count: int = NEGATIVES,
) -> tuple[Int[np.ndarray, "name count"], Float[np.ndarray, "name count"]]:
    """At most `count` rows that each gate scores highest, above `least`; rows in ascending order.

    `excluded` are the rows that are not counted, per gate. Where fewer are left, the other places
    are row -1 with the score -inf. At most `CHUNK` gates at once.
    """
    found = np.full((len(directions), count), -1)
    values = np.full((len(directions), count), -np.inf, np.float32)
    part = np.zeros((CHUNK, rows.shape[1]), np.float32)  # One shape, hence the same bits.
    part[: len(directions)] = directions
    scores = part @ rows.T
    for gate, line in enumerate(scores[: len(directions)]):
        line[excluded[gate]] = -np.inf
        above = np.flatnonzero(line > least)
        if above.size > count:
            above = np.sort(above[np.argpartition(-line[above], count - 1)[:count]])
        found[gate, : above.size], values[gate, : above.size] = above, line[above]
    return found, values


def in_states(
    directions: Float[np.ndarray, "name dim"], space: Metric
) -> Float64[np.ndarray, "name dim"]:
    """Directions for plain states: `a` with `a (x - mean)` the gate's score."""
    return np.matmul(directions[:, None].astype(np.float64), space.root)[:, 0]
