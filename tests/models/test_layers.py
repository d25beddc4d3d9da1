"""Layers of parameters that are given: flax's values, flax's errors, and no initialiser traced."""

from __future__ import annotations

import flax.errors
import jax
import numpy as np
import pytest
from flax import linen as nn

from emcid_jax.models import layers

X = np.random.default_rng(0).standard_normal((2, 5, 5, 3)).astype(np.float32)
PAIRS = [
    (layers.Dense(4), nn.Dense(4), X),
    (layers.Conv(4, (3, 3)), nn.Conv(4, (3, 3)), X),
    (layers.LayerNorm(), nn.LayerNorm(), X),
    (layers.Embed(7, 4), nn.Embed(7, 4), np.array([[3, 0, 6]])),
]


@pytest.mark.parametrize(("ours", "theirs", "x"), PAIRS, ids=lambda one: type(one).__name__)
def test_values_and_beginnings_are_flaxs(ours: nn.Module, theirs: nn.Module, x: np.ndarray) -> None:
    begun = [jax.jit(module.init)(jax.random.key(1), x) for module in (ours, theirs)]
    for mine, its in zip(*map(jax.tree.leaves, begun), strict=True):
        np.testing.assert_array_equal(mine, its)
    found, wanted = (jax.jit(module.apply)(begun[0], x) for module in (ours, theirs))
    np.testing.assert_array_equal(found, wanted)


def test_an_initialiser_is_traced_only_for_what_is_missing() -> None:
    asked = []

    def init(_: jax.Array, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        asked.append(shape)
        return np.ones(shape, dtype)

    dense = layers.Dense(4, kernel_init=init)
    params = dense.init(jax.random.key(0), X)
    assert asked == [(3, 4)]
    dense.apply(params, X)
    assert asked == [(3, 4)]


def test_another_shape_is_flaxs_error() -> None:
    params = layers.Dense(4).init(jax.random.key(0), X)
    with pytest.raises(flax.errors.ScopeParamShapeError, match="kernel"):
        layers.Dense(4).apply(params, X[..., :2])
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        layers.Dense(4).apply({"params": {"bias": np.zeros(4)}}, X)
