"""Noise that belongs to a seed: no image depends on its neighbours or on the batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, UInt32

NoiseSource = Literal["numpy", "jax"]
"""Who draws: NumPy's default generator, or JAX's threefry."""


def seeded_noise(
    shape: tuple[int, ...], seeds: Sequence[int], draws: int = 1, source: NoiseSource = "numpy"
) -> Float[np.ndarray, "image draw *shape"]:
    """Unit-variance noise, `draws` arrays in a row from each seed; the first are initial latents.

    `numpy` is `np.random.default_rng(seed).standard_normal(shape)` again and again, which anybody
    can draw; `jax` is `jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), shape)`.
    """
    if source == "numpy":
        each = [np.random.default_rng(seed).standard_normal((draws, *shape)) for seed in seeds]
        return np.asarray(each, np.float32).reshape(len(seeds), draws, *shape)

    indices = np.arange(draws, dtype=np.uint32)
    return np.array(_jax_noise(np.asarray(seeds, np.uint32), indices, shape=shape))


@functools.partial(jax.jit, static_argnames="shape")
def _jax_noise(
    seeds: UInt32[Array, " image"], indices: UInt32[Array, " draw"], *, shape: tuple[int, ...]
) -> Float[Array, "image draw *shape"]:
    def draw(seed: Array, index: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape)

    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(seeds, indices)
