"""Trains the UNet to predict noise on the latents of drawn pictures, given their captions' states.

Latents and text states are computed once and kept; a step only draws rows, noise and timesteps.
Errors are weighted by min(SNR, 5) / SNR (arXiv 2303.09556), a tenth of the captions is emptied for
classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float16, Int, UInt8
from tqdm import tqdm

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNet2DCondition
from emcid_jax.models.image.vae import AutoencoderKL
from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.sprites.drawing import to_float
from emcid_jax.sprites.training.loop import Batch, Recipe, fit

_EMPTY_SHARE = 0.1
_SNR_LIMIT = 5.0


class UNetData(NamedTuple):
    """Everything a step draws from; latents are already multiplied by the scaling factor."""

    mean: Float[np.ndarray, "image height width latent"]
    std: Float[np.ndarray, "image height width latent"]
    text: Float16[np.ndarray, "image token dim"]
    empty: Float16[np.ndarray, "token dim"]


def _in_batches(name: str, function, rows: int, batch: int) -> list:
    """Results of `function(slice)` over all rows, the last slice shorter."""
    starts = range(0, rows, batch)
    return [
        function(slice(start, start + batch)) for start in tqdm(starts, desc=name, mininterval=5)
    ]


def encode_images(
    vae: AutoencoderKL, params: Any, images: UInt8[np.ndarray, "image height width 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of every image, unscaled."""
    encode = jax.jit(lambda x: vae.apply({"params": params}, x, method="encode"))
    parts = _in_batches(
        "latents", lambda rows: jax.device_get(encode(to_float(images[rows]))), len(images), 200
    )
    means, stds = zip(*parts, strict=True)
    return np.concatenate(means), np.concatenate(stds)


def encode_texts(
    text: ClipTextModel, params: Any, ids: Int[np.ndarray, "caption token"]
) -> tuple[Float16[np.ndarray, "caption token dim"], Float16[np.ndarray, "caption dim"]]:
    """Final states of every caption, padded as at inference, and the pooled ones."""

    @jax.jit
    def encode(batch: Array) -> tuple[Array, Array]:
        out = cast(TextOutput, text.apply({"params": params}, batch))
        return out.last_hidden_state.astype(jnp.float16), out.pooled.astype(jnp.float16)

    def batch(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(encode(ids[rows]))

    parts = _in_batches("text states", batch, len(ids), 200)
    states, pooled = zip(*parts, strict=True)
    return np.concatenate(states), np.concatenate(pooled)


def train_unet(
    model: UNet2DCondition,
    schedule: NoiseSchedule,
    params: Any,
    batch_at: Callable[[int], Batch],
    recipe: Recipe,
    folder: Path,
) -> Any:
    """Averaged parameters of the UNet, trained from `params`.

    `batch_at(step)` gives means and deviations of latents, and a tuple of what the UNet reads
    beside latents and timesteps.
    """
    alphas = jnp.asarray(schedule.alphas_cumprod, jnp.float32)

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        mean, std, condition = batch
        keys = jax.random.split(key, 3)
        latents = mean + std * jax.random.normal(keys[0], mean.shape)
        noise = jax.random.normal(keys[1], mean.shape)
        time = jax.random.randint(keys[2], (len(mean),), 0, len(alphas))
        alpha = alphas[time][:, None, None, None]
        noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise
        predicted = cast(Array, model.apply({"params": params}, noisy, time, *condition))
        snr = alpha / (1 - alpha)
        return jnp.mean(jnp.minimum(snr, _SNR_LIMIT) / snr * (predicted - noise) ** 2)

    return fit("unet", loss, params, batch_at, recipe, folder)


def start_unet(model: UNet2DCondition, batch: Batch, seed: int) -> Any:
    """Fresh parameters; `batch` is one of those that `train_unet` takes."""
    mean, _, condition = jax.tree.map(lambda rows: jnp.asarray(rows[:1]), batch)
    return model.init(jax.random.key(seed), mean, jnp.zeros((1,), jnp.int32), *condition)["params"]


def caption_rows(data: UNetData, recipe: Recipe) -> Callable[[int], Batch]:
    """Step -> a batch for `train_unet` of a UNet that reads one text encoder's states."""

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.integers(len(data.mean), size=recipe.batch)
        text = data.text[rows]
        text[rng.random(recipe.batch) < _EMPTY_SHARE] = data.empty
        return data.mean[rows], data.std[rows], (text.astype(np.float32),)

    return batch_at
