"""LPIPS_e, LPIPS_u and their difference by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emcid_jax.evaluation.judges.lpips import SIDE, Lpips64, perceptual_change
from emcid_jax.models.scoring.lpips import Lpips
from emcid_jax.models.weights.params import abstract_params
from emcid_jax.runtime.errors import UserError


def test_by_hand() -> None:
    found = perceptual_change(np.array([0.4, 0.6]), np.array([0.1, 0.0, 0.2]))
    assert found.lpips_e.value == pytest.approx(0.5)
    assert found.lpips_u.value == pytest.approx(0.1)
    assert found.difference.value == pytest.approx(0.4)
    assert (found.lpips_e.low, found.lpips_e.high) == pytest.approx((0.4, 0.6))
    low, high = found.difference.low, found.difference.high
    assert low is not None
    assert high is not None
    assert 0.2 <= low < 0.4 < high <= 0.6
    assert perceptual_change(np.array([0.4]), np.array([0.1, 0.2])).difference.low is None


def test_distances_that_are_no_numbers_are_named() -> None:
    shapes = abstract_params(Lpips(), *[jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)] * 2)
    broken = Lpips64(jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes))
    pictures = np.zeros((2, SIDE * SIDE * 3), np.float32)
    with pytest.raises(UserError, match="LPIPS distances of pair 0 and 1 more are not finite"):
        broken(pictures, pictures)
