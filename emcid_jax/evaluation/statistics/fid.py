"""Frechet distance between two sets of image features (FID, Heusel et al., arXiv 1706.08500).

Which features, and which two sets, is the caller's to say: a judge's or InceptionV3's, against real
images or against the unedited model's. Distances of different features compare with nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

BLOCK = 4096
"""Images whose features are widened to float64 together."""


class FeatureMoments(NamedTuple):
    """Mean and covariance of features, all that the distance needs."""

    mean: Float64[np.ndarray, " dim"]
    covariance: Float64[np.ndarray, "dim dim"]
    """Divided by count - 1."""
    count: int


def feature_moments(features: Float[np.ndarray, "image dim"]) -> FeatureMoments:
    """Moments in float64; ValueError for fewer than two images."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} images have no covariance")
    mean = features.mean(0, dtype=np.float64)
    total = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), BLOCK):
        centred = features[start : start + BLOCK] - mean
        total += centred.T @ centred
    return FeatureMoments(mean, total / (len(features) - 1), len(features))


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), so the root's trace is
    a sum of real square roots, also where a covariance is singular; rounding below 0 counts as 0.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    mixed = root @ second.covariance @ root
    eigenvalues = np.linalg.eigvalsh((mixed + mixed.T) / 2)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    apart = np.square(first.mean - second.mean).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(max(apart + traces - 2 * cross, 0.0))


def fid(first: Float[np.ndarray, "_ dim"], second: Float[np.ndarray, "_ dim"]) -> float:
    """The distance of two sets of features; it shrinks with their sizes, so compare equal ones."""
    return frechet_distance(feature_moments(first), feature_moments(second))
