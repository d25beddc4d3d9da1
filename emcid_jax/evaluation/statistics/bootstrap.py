"""Means of scores with bootstrap intervals, as pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

BOOTSTRAP_DRAWS = 2000


LEVEL = 0.95


class Metric(NamedTuple):
    """One aggregate with its interval and the best value it could take."""

    value: float
    low: float | None
    """Lower end of the 95 % bootstrap interval; None below two independent units."""
    high: float | None
    count: int
    """Units averaged: requests, aliases or hold-out classes."""
    bound: float
    """The protocol's bound: largest possible value (for Holdout Delta the smallest)."""
    reachable: float | None = None
    """Source2Dest only: what the clean model scores when the prompt names the destination."""


class Estimate(NamedTuple):
    """A figure that has no bound, with its 95 % bootstrap interval."""

    value: float
    low: float | None
    high: float | None


def request_scores(
    images: Sequence[Float[np.ndarray, "_"]],
) -> Float[np.ndarray, " request"]:
    """Mean over the images of each request; a request without images raises ValueError."""
    if any(len(one) == 0 for one in images):
        raise ValueError("a request without images has no score")
    return np.array([np.mean(one, dtype=np.float64) for one in images], np.float64)


def score(images: Sequence[Float[np.ndarray, "_"]]) -> float:
    """Mean over the images of one request, then mean over requests."""
    return float(np.mean(request_scores(images)))


def resampled_means(
    values: Float[np.ndarray, " unit"], units: Int[np.ndarray, " unit"], seed: int, draws: int
) -> Float[np.ndarray, " draw"] | None:
    """Means under resampling whole groups `units`; None when there are fewer than two groups."""
    _, group = np.unique(units, return_inverse=True)
    groups = int(group.max()) + 1
    if groups < 2:
        return None
    sums = np.bincount(group, weights=values, minlength=groups)
    counts = np.bincount(group, minlength=groups)
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws)
    return (weights @ sums) / (weights @ counts)


def interval(means: Float[np.ndarray, " draw"] | None) -> tuple[float | None, float | None]:
    """Ends of the `LEVEL` percentile interval; None without resampled means."""
    if means is None:
        return None, None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_mean(
    values: Float[np.ndarray, " unit"],
    *,
    bound: float,
    units: Int[np.ndarray, " unit"] | None = None,
    reachable: float | None = None,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> Metric:
    """Mean of `values` with a percentile bootstrap interval over independent units.

    `units[i]` names the group value i belongs to (aliases of one request are resampled together);
    by default every value is its own group. The same seed gives the same interval.
    """
    units = np.arange(len(values)) if units is None else units
    low, high = interval(resampled_means(values, units, seed, draws))
    return Metric(float(np.mean(values)), low, high, len(values), bound, reachable)


def difference_of_means(
    first: Float[np.ndarray, " first"],
    second: Float[np.ndarray, " second"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[Estimate, Estimate, Estimate]:
    """Both means, and the first minus the second; the two sets are resampled independently."""
    means = [
        resampled_means(values, np.arange(len(values)), seed + i, draws)
        for i, values in enumerate((first, second))
    ]
    apart = None if means[0] is None or means[1] is None else means[0] - means[1]
    a, b = float(np.mean(first)), float(np.mean(second))
    return (
        Estimate(a, *interval(means[0])),
        Estimate(b, *interval(means[1])),
        Estimate(a - b, *interval(apart)),
    )


def paired_means(
    before: Float[np.ndarray, " unit"],
    after: Float[np.ndarray, " unit"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[Estimate, Estimate, Estimate]:
    """Means of both and of `after - before`, whose entries belong together: pairs are resampled."""
    pairs = np.arange(len(before))

    def estimate(values: Float[np.ndarray, " unit"]) -> Estimate:
        means = resampled_means(values, pairs, seed, draws)
        return Estimate(float(np.mean(values)), *interval(means))

    return estimate(before), estimate(after), estimate(after - before)
