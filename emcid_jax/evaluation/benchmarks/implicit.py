"""Implicit assumptions of a model, edited one at a time: TIMED and RoAD (TIME, arXiv 2303.08084).

"A pack of roses" is drawn red until an edit says blue. A CLIP-style judge chooses between the old
and the new description of each picture; what counts is which one it finds more probable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.evaluation.statistics.accuracy import harmonic_mean

CONFIDENT = (0.75, 0.9)
"""Probabilities of the new description that stricter generalities ask for."""


class MeanAndSpread(NamedTuple):
    """Mean over edits and seeds; standard deviation (NumPy's) over seeds of each seed's mean."""

    mean: float
    std: float


class ImplicitScores(NamedTuple):
    """Shares of choices that are right."""

    efficacy: MeanAndSpread
    """The source prompt itself: the new description is chosen."""
    generality: MeanAndSpread
    """Related prompts: the new one is chosen."""
    confident: tuple[MeanAndSpread, ...]
    """The same with its probability above each of `CONFIDENT`."""
    specificity: MeanAndSpread
    """Prompts that should not change: the old description is chosen."""
    f1: float
    """Harmonic mean of generality and specificity."""


def choice(
    old: Float[np.ndarray, "*shape"], new: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """P(new) under a softmax over both logits (CLIP's: 100 cos)."""
    return 1 / (1 + np.exp(old.astype(np.float64) - new))


def implicit_scores(
    source: Float[np.ndarray, "seed edit"],
    related: Float[np.ndarray, "seed edit related"],
    unrelated: Float[np.ndarray, "seed edit unrelated"],
) -> ImplicitScores:
    """The benchmark's figures from P(new description) of every picture by the edited model.

    A draw between the descriptions counts for neither.
    """
    generality = _over_seeds(related > 0.5)
    specificity = _over_seeds(unrelated < 0.5)
    return ImplicitScores(
        _over_seeds(source > 0.5),
        generality,
        tuple(_over_seeds(related > least) for least in CONFIDENT),
        specificity,
        harmonic_mean([generality.mean, specificity.mean]),
    )


def _over_seeds(right: np.ndarray) -> MeanAndSpread:
    means = right.reshape(len(right), -1).mean(1)
    return MeanAndSpread(float(means.mean()), float(means.std()))
