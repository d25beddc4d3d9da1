"""Noise is a function of the seed alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emcid_jax.diffusion.noise import NoiseSource, seeded_noise

SHAPE = (3, 2, 4)


def test_numpy_noise_is_what_a_user_of_numpy_draws() -> None:
    noise = seeded_noise(SHAPE, [7, 8], draws=3)
    rng = np.random.default_rng(8)
    for i in range(3):
        np.testing.assert_array_equal(noise[1, i], rng.standard_normal(SHAPE).astype(np.float32))


def test_jax_noise_is_what_a_user_of_jax_draws() -> None:
    noise = seeded_noise(SHAPE, [7, 2**32 - 1], draws=2, source="jax")
    for i, seed in enumerate((7, 2**32 - 1)):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), 1)
        np.testing.assert_array_equal(noise[i, 1], jax.random.normal(key, SHAPE))


@pytest.mark.parametrize("source", ["numpy", "jax"])
def test_neighbours_and_later_draws_change_nothing(source: NoiseSource) -> None:
    noise = seeded_noise(SHAPE, [1, 2, 3], 1, source)
    np.testing.assert_array_equal(noise[1:2], seeded_noise(SHAPE, [2], 4, source)[:, :1])
    assert np.abs(noise[0] - noise[1]).max() > 0.5
    assert seeded_noise(SHAPE, [], 2, source).shape == (0, 2, *SHAPE)
