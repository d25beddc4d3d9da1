"""Trains the autoencoder on drawn pictures: absolute error, edges, and a KL term.

First on crops, which show four times as many pictures for the same work, with hardly any KL; then
on whole pictures, as the decoder will meet them, with enough KL to bear a sampler's small errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import UInt8

from emcid_jax.models.image.vae import AutoencoderKL
from emcid_jax.sprites.drawing import to_float
from emcid_jax.sprites.training.loop import Recipe, fit


def _edges(images: Array) -> tuple[Array, Array]:
    return images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]


def train_vae(
    model: AutoencoderKL,
    images: UInt8[np.ndarray, "image height width 3"],
    crops: Recipe,
    whole: Recipe,
    folder: Path,
) -> Any:
    """Parameters after both passes."""
    size = images.shape[1]
    params = model.init(jax.random.key(crops.seed), jnp.zeros((1, size, size, 3)))["params"]
    params = _pass("vae", model, images, crops, folder, size // 2, 2e-5, params)
    return _pass("vae_whole", model, images, whole, folder, size, 2e-3, params)


def _pass(
    name: str,
    model: AutoencoderKL,
    images: UInt8[np.ndarray, "image height width 3"],
    recipe: Recipe,
    folder: Path,
    crop: int,
    kl_weight: float,
    params: Any,
) -> Any:
    """Training on random `crop` px squares, starting from `params`."""
    size = images.shape[1]

    def loss(params, batch, key):
        posterior = model.apply({"params": params}, batch, method="encode")
        mean, std = cast(tuple[Array, Array], posterior)
        latents = mean + std * jax.random.normal(key, mean.shape)
        decoded = cast(Array, model.apply({"params": params}, latents, method="decode"))
        kl = 0.5 * jnp.mean(mean**2 + std**2 - 1 - 2 * jnp.log(std))
        error = jnp.mean(jnp.abs(decoded - batch)) + jnp.mean((decoded - batch) ** 2)
        for a, b in zip(_edges(decoded), _edges(batch), strict=True):
            error += jnp.mean(jnp.abs(a - b))
        return error + kl_weight * kl

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

    return fit(name, loss, params, batch_at, recipe, folder)
