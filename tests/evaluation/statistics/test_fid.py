"""The Frechet distance against SciPy's matrix root, closed forms, and degenerate features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from emcid_jax.evaluation.statistics.fid import (
    FeatureMoments,
    feature_moments,
    fid,
    frechet_distance,
)


def oracle(first: np.ndarray, second: np.ndarray) -> float:
    """The formula as pytorch-fid writes it: np.cov and scipy.linalg.sqrtm of the product."""
    a, b = (np.cov(x, rowvar=False) for x in (first, second))
    root = scipy.linalg.sqrtm(a @ b)
    apart = first.mean(0) - second.mean(0)
    return float(apart @ apart + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


@pytest.mark.parametrize("dim", [1, 3, 24])
def test_against_a_matrix_root(dim: int) -> None:
    rng = np.random.default_rng(dim)
    mix = rng.standard_normal((dim, dim))
    first = rng.standard_normal((200, dim))
    second = 0.5 + rng.standard_normal((300, dim)) @ mix
    if dim == 1:
        # (m1 - m2)^2 + (s1 - s2)^2
        spread = first.std(ddof=1) - second.std(ddof=1)
        expected = float((first.mean() - second.mean()) ** 2 + spread**2)
    else:
        expected = oracle(first, second)
    assert fid(first, second) == pytest.approx(expected, rel=1e-9)
    assert fid(second, first) == pytest.approx(expected, rel=1e-9)


def test_by_hand() -> None:
    # Commuting covariances: |m1 - m2|^2 + sum (sqrt a_i - sqrt b_i)^2 = 25 + 1 + 4.
    first = FeatureMoments(np.array([0.0, 0.0]), np.diag([4.0, 9.0]), 2)
    second = FeatureMoments(np.array([3.0, 4.0]), np.diag([1.0, 25.0]), 2)
    assert frechet_distance(first, second) == pytest.approx(30.0)


def test_moments_are_numpys() -> None:
    features = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    found = feature_moments(features)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), atol=1e-12)
    assert found.count == 7
    with pytest.raises(ValueError, match="no covariance"):
        feature_moments(features[:1])


def test_fewer_images_than_dimensions() -> None:
    # Covariances of rank 9 in 64 dimensions, where the root of the product is ill-conditioned.
    rng = np.random.default_rng(1)
    features = rng.standard_normal((10, 64))
    assert fid(features, features) == pytest.approx(0.0, abs=1e-6)
    assert fid(features, features + 2.0) == pytest.approx(4.0 * 64, rel=1e-6)
