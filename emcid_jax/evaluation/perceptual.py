"""Perceptual change of pictures, from distances (LPIPS or alike) to the clean model's pictures.

Both pictures of a pair have the same prompt and seed; distances are >= 0, and 0 is no change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.evaluation.metrics import BOOTSTRAP_DRAWS, Estimate, difference_of_means


class PerceptualChange(NamedTuple):
    """Means over concepts."""

    lpips_e: Estimate
    """Of erased concepts' pictures: high is good."""
    lpips_u: Estimate
    """Of pictures that should stay: low is good."""
    difference: Estimate
    """LPIPS_e - LPIPS_u."""


def perceptual_change(
    erased: Float[np.ndarray, " erased"],
    unerased: Float[np.ndarray, " unerased"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> PerceptualChange:
    """LPIPS_e, LPIPS_u and their difference.

    Args:
        erased, unerased: mean distance of each concept's pictures; concepts are resampled.
        seed, draws: of the bootstrap.
    """
    return PerceptualChange(*difference_of_means(erased, unerased, seed=seed, draws=draws))
