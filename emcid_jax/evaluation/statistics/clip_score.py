"""CLIP scores: how well pictures fit texts, from embeddings that some CLIP-style model made."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.evaluation.statistics.bootstrap import BOOTSTRAP_DRAWS, Estimate, difference_of_means

SCALE = 100.0
"""CLIP's own logit scale, in whose units scores are published."""


class ArtistScores(NamedTuple):
    """MACE's figures for erased artists (arXiv 2403.06135)."""

    clip_e: Estimate
    """Pictures of erased artists' prompts beside their prompts: low is good."""
    clip_s: Estimate
    """The same for artists that should stay: high is good."""
    h_a: Estimate
    """CLIP_s - CLIP_e, a difference in spite of its name."""


def clip_scores(
    images: Float[np.ndarray, "pair dim"], texts: Float[np.ndarray, "pair dim"]
) -> Float64[np.ndarray, " pair"]:
    """100 cos(image, text) pair by pair: CLIP's `logits_per_image`, not cut off at 0."""
    a, b = (
        side / np.linalg.norm(side, axis=1, keepdims=True)
        for side in (images.astype(np.float64), texts.astype(np.float64))
    )
    return SCALE * (a * b).sum(1)


def artist_scores(
    erased: Float[np.ndarray, " erased"],
    kept: Float[np.ndarray, " kept"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> ArtistScores:
    """CLIP_e, CLIP_s and H_a.

    Args:
        erased, kept: mean CLIP score of each artist's pictures; artists are resampled.
        seed, draws: of the bootstrap.
    """
    clip_s, clip_e, h_a = difference_of_means(kept, erased, seed=seed, draws=draws)
    return ArtistScores(clip_e, clip_s, h_a)
