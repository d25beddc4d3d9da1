"""LPIPS_e, LPIPS_u and their difference by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.judges.lpips import perceptual_change


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
