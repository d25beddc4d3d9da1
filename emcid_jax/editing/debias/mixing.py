"""Debias: factors that mix the memories of several destinations, and the search for them.

A `debias` request has one memory per destination, all from the same h0. Its own memory is their
mixture `z = sum_j f_j z_j = h0 + sum_j f_j delta_j`, with factors f_j >= 0 that sum to 1. Which
factors make the drawn images follow the requested ratios is found by trying: every trial draws
images and counts the values in them. Here are the pure parts of that search (docs/debias.md);
`workflow/debias_search.py` draws and counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank.memories import Memory

ROUNDING = 1e-9
"""Shares are ratios of whole numbers: a tolerance is met although floats miss it by rounding."""

Factors = tuple[float, ...]


class Trial(NamedTuple):
    """Factors, and how many images drawn with them showed each value."""

    factors: Factors
    counts: tuple[int, ...]


class Response(NamedTuple):
    """How a request answers to factors: P(value j) = softmax_j(slope f_j + offset_j)."""

    slope: float
    offsets: Float[np.ndarray, " value"]


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """What is believed of a response before a trial; standard deviations of log slope, offsets."""

    response: Response
    slope_spread: float
    offset_spread: float


def parts(request: EditRequest) -> tuple[EditRequest, ...]:
    """The requests of one destination each whose memories make the request's own.

    For all tasks but `debias` that is the request itself. Image files are dealt out evenly, in
    order of the destinations.
    """
    if request.task != "debias":
        return (request,)
    each = len(request.image_paths) // len(request.dests)
    return tuple(
        dataclasses.replace(
            request,
            dest=dest,
            task="update",
            ratios=(),
            image_paths=request.image_paths[j * each : (j + 1) * each],
        )
        for j, dest in enumerate(request.dests)
    )


def mixed(memories: Sequence[Memory], factors: Sequence[float]) -> Memory:
    """The mixture of memories that share h0; losses are mixed alike. Computed in float64."""
    weights = np.asarray(factors, np.float64) / sum(factors)
    fields = [np.stack(field) for field in zip(*memories, strict=True)]
    mixtures = (np.tensordot(weights, field, axes=1) for field in fields)
    return Memory(*(np.asarray(mixture, np.float32) for mixture in mixtures))


def deviation(counts: Sequence[int], ratios: Sequence[float]) -> float:
    """Largest difference between a drawn and a requested share."""
    shares = np.asarray(counts, np.float64) / sum(counts)
    return float(np.abs(shares - np.asarray(ratios)).max())


def is_near(counts: Sequence[int], ratios: Sequence[float], tolerance: float) -> bool:
    """Whether every drawn share is within `tolerance` of the requested one."""
    return deviation(counts, ratios) <= tolerance + ROUNDING


def resolution(ratios: Sequence[float], images: int) -> float:
    """The smallest deviation that so many images can show: counts are whole numbers."""
    wanted = np.asarray(ratios, np.float64) * images
    counts = np.floor(wanted + ROUNDING).astype(int)
    rest = np.argsort(counts - wanted, kind="stable")[: images - int(counts.sum())]
    counts[rest] += 1
    return deviation(counts.tolist(), ratios)


def first_candidates(ratios: Sequence[float], count: int) -> tuple[Factors, ...]:
    """Factors to begin with: the requested ratios, and steps from them towards every pure value."""
    asked = np.asarray(ratios, np.float64)
    steps = -(-(count - 1) // len(asked))
    shares = [step / (steps + 1) for step in range(1, steps + 1)]
    found = [asked] + [asked + (pure - asked) * s for s in shares for pure in np.eye(len(asked))]
    return tuple(_floats(factors) for factors in found[:count])


def broad_prior(values: int) -> Prior:
    """Before any trial: from hardly any answer to a switch between the pure values."""
    return Prior(Response(4.0, np.zeros(values)), slope_spread=1.5, offset_spread=5.0)


def narrow_prior(response: Response) -> Prior:
    """After the search: Stage II may shift the response, and write less than was requested."""
    return Prior(response, slope_spread=0.3, offset_spread=1.5)


def fit(trials: Sequence[Trial], prior: Prior) -> Response:
    """The most probable response given some trials (multinomial counts, Gaussian prior)."""
    from scipy.optimize import minimize

    factors = np.array([trial.factors for trial in trials], np.float64)
    counts = np.array([trial.counts for trial in trials], np.float64)
    start = np.array([math.log(prior.response.slope), *prior.response.offsets])
    spread = np.array([prior.slope_spread] + [prior.offset_spread] * (len(start) - 1))

    def cost(point: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior and its gradient at (log slope, offsets)."""
        distance, slope = (point - start) / spread, math.exp(point[0])
        logits = slope * factors + point[1:]
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        surplus = counts.sum(axis=1, keepdims=True) * np.exp(log_p) - counts
        ascent = np.array([slope * (surplus * factors).sum(), *surplus.sum(axis=0)])
        value = 0.5 * float(distance @ distance) - float((counts * log_p).sum())
        return value, distance / spread + ascent

    bounds = [(start[0] - 5, start[0] + 5)] + [(None, None)] * (len(start) - 1)
    best = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Response(math.exp(best[0]), best[1:])


def aim(response: Response, ratios: Sequence[float], images: int) -> Factors:
    """The factors that should give the requested ratios; a share of 0 is read as half an image."""
    asked = np.maximum(np.asarray(ratios, np.float64), 0.5 / images)
    wanted = (np.log(asked) - response.offsets) / response.slope
    return _floats(project(wanted + (1 - wanted.sum()) / len(wanted)))


def project(point: Float[np.ndarray, " value"]) -> Float[np.ndarray, " value"]:
    """The nearest point whose entries are >= 0 and sum to 1 (Held et al., 1974)."""
    ordered = np.sort(point)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    return np.maximum(point - excess[np.flatnonzero(ordered > excess)[-1]], 0.0)


def pooled(trials: Sequence[Trial], factors: Factors) -> tuple[int, ...]:
    """All counts seen with these very factors; empty without any."""
    counts = [trial.counts for trial in trials if trial.factors == factors]
    return tuple(map(sum, zip(*counts, strict=True)))


def _floats(factors: np.ndarray) -> Factors:
    """Rounded, so that what is stored as text is what was used."""
    return tuple(round(float(factor), 6) for factor in factors)
