"""Factors of a change give the singular values and vectors of the change itself."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.editing.export import factors


@pytest.mark.parametrize("rank", [3, 40])
def test_singular_values_are_numpys(rank: int) -> None:
    rng = np.random.default_rng(rank)
    delta = rng.normal(size=(24, rank)) @ rng.normal(size=(rank, 60))
    arrays = factors.split(delta, "w")
    assert (arrays is None) == (rank == 40)
    arrays = arrays or {"w": delta.astype(np.float32)}
    stored = factors.restored(arrays, "w")
    left, values, right = factors.svd(arrays, "w")
    wanted = np.linalg.svd(stored, compute_uv=False)
    np.testing.assert_allclose(values, wanted[: len(values)], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((left * values) @ right, stored, atol=1e-12 * wanted[0])
    for vectors in (left.T, right):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-12)
