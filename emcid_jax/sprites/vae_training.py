"""Trains the autoencoder on drawn pictures: absolute error, edges, and a light KL term."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import UInt8

from emcid_jax.models.vae import AutoencoderKL
from emcid_jax.sprites.drawing import to_float
from emcid_jax.sprites.training import Recipe, fit

_KL_WEIGHT = 2e-5


def _edges(images: Array) -> tuple[Array, Array]:
    return images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]


def train_vae(
    model: AutoencoderKL,
    images: UInt8[np.ndarray, "image height width 3"],
    recipe: Recipe,
    folder: Path,
    crop: int,
) -> Any:
    """Parameters trained on random `crop` px squares (whole images when `crop` is their size)."""
    size = images.shape[1]

    def loss(params, batch, key):
        mean, std = model.apply({"params": params}, batch, method="encode")
        latents = mean + std * jax.random.normal(key, mean.shape)
        decoded = model.apply({"params": params}, latents, method="decode")
        kl = 0.5 * jnp.mean(mean**2 + std**2 - 1 - 2 * jnp.log(std))
        error = jnp.mean(jnp.abs(decoded - batch)) + jnp.mean((decoded - batch) ** 2)
        for a, b in zip(_edges(decoded), _edges(batch), strict=True):
            error += jnp.mean(jnp.abs(a - b))
        return error + _KL_WEIGHT * kl

    def batch_at(step: int):
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.integers(len(images), size=recipe.batch)
        # Crops start on the latent grid, as the decoder always meets them.
        grid = model.config.downscale
        corners = grid * rng.integers((size - crop) // grid + 1, size=(recipe.batch, 2))
        return np.stack(
            [
                to_float(images[row, y : y + crop, x : x + crop])
                for row, (y, x) in zip(rows, corners, strict=True)
            ]
        )

    example = jnp.zeros((1, crop, crop, 3))
    params = model.init(jax.random.key(recipe.seed), example)["params"]
    return fit("vae", loss, params, batch_at, recipe, folder)
