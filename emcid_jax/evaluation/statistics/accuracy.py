"""Top-1 accuracies of erasure and their harmonic means (MACE, arXiv 2403.06135; UCE, SPEED).

Acc_e: how often the judge still finds the erased concept on its own prompts. Acc_s: how often it
finds concepts that nobody edited on theirs. Acc_g: how often it finds the erased concept on its
synonyms. Low, high and low is good; H_o and H_c say so in one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from emcid_jax.evaluation.statistics.bootstrap import (
    BOOTSTRAP_DRAWS,
    Metric,
    interval,
    resampled_means,
)


def top1(
    probabilities: Float[np.ndarray, "image label"], class_ids: Int[np.ndarray, " image"]
) -> Bool[np.ndarray, " image"]:
    """Whether the most probable label is the class asked for."""
    return probabilities.argmax(-1) == class_ids


def harmonic_mean(values: Sequence[float]) -> float:
    """n / (1/v_1 + ... + 1/v_n) of values in [0, 1]; 0 if one of them is 0."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def h_c(acc_e: float, acc_s: float) -> float:
    """2 / [(1 - Acc_e)^-1 + Acc_s^-1]: MACE's for celebrities (SPEED calls it H_o)."""
    return harmonic_mean([1 - acc_e, acc_s])


def h_o(acc_e: float, acc_s: float, acc_g: float) -> float:
    """3 / [(1 - Acc_e)^-1 + Acc_s^-1 + (1 - Acc_g)^-1]: MACE's for objects."""
    return harmonic_mean([1 - acc_e, acc_s, 1 - acc_g])


def erasure(
    erased: Float[np.ndarray, " request"],
    kept: Float[np.ndarray, " holdout"],
    synonyms: Float[np.ndarray, " alias"],
    requests: Int[np.ndarray, " alias"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> dict[str, Metric]:
    """`acc_e`, `acc_s`, `acc_g`, `h_c` and `h_o`, as far as there is anything to average.

    Args:
        erased: share of a request's images in which its source is found, per request.
        kept: the same per concept that nobody edits.
        synonyms: the same per other name of a source.
        requests: whose name it is; names of one request are resampled together.
        seed, draws: of the bootstrap, which resamples the three sets independently.
    """
    sets = {
        "acc_e": (erased, np.arange(len(erased)), 0.0),
        "acc_s": (kept, np.arange(len(kept)), 1.0),
        "acc_g": (synonyms, requests, 0.0),
    }
    found: dict[str, Metric] = {}
    means: dict[str, np.ndarray | None] = {}
    for offset, (name, (values, units, best)) in enumerate(sets.items()):
        if len(values):
            means[name] = resampled_means(values, units, seed + offset, draws)
            low, high = interval(means[name])
            found[name] = Metric(float(np.mean(values)), low, high, len(values), best)
    combined: tuple[tuple[str, Callable[..., float]], ...] = (("h_c", h_c), ("h_o", h_o))
    for name, combine in combined:
        parts = ("acc_e", "acc_s") if name == "h_c" else ("acc_e", "acc_s", "acc_g")
        if all(part in found for part in parts):
            value = combine(*(found[part].value for part in parts))
            draw = [means[part] for part in parts]
            resampled = None
            if all(part is not None for part in draw):
                rows = np.stack([part for part in draw if part is not None], axis=1)
                resampled = np.array([combine(*row) for row in rows.tolist()])
            found[name] = Metric(value, *interval(resampled), len(erased), 1.0)
    return found
