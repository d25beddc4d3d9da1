"""What the UNet of SDXL's shape is trained on: two encoders' states, the pooled text, the sizes.

A half of the rows lacks the pooled text, which would be enough by itself to draw from. Rows
without any text are zeros, as SDXL's empty prompt is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float16

from emcid_jax.sprites.training.loop import Batch, Recipe

_EMPTY = 0.1
_UNPOOLED = 0.5


class XlData(NamedTuple):
    """Everything a step draws from; latents are already multiplied by the scaling factor."""

    mean: Float[np.ndarray, "image height width latent"]
    std: Float[np.ndarray, "image height width latent"]
    states: tuple[Float16[np.ndarray, "image token _dim"], ...]
    """Of every encoder."""
    pooled: Float16[np.ndarray, "image projection"]
    sizes: Float[np.ndarray, "image 6"]


def xl_rows(data: XlData, recipe: Recipe) -> Callable[[int], Batch]:
    """Step -> a batch for `train_unet` of a UNet of SDXL's shape."""

    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.integers(len(data.mean), size=recipe.batch)
        empty, unpooled = rng.random((2, recipe.batch)) < [[_EMPTY], [_UNPOOLED]]
        text = np.concatenate([states[rows] for states in data.states], -1).astype(np.float32)
        pooled = data.pooled[rows].astype(np.float32)
        text[empty] = 0
        pooled[empty | unpooled] = 0
        return data.mean[rows], data.std[rows], (text, pooled, data.sizes[rows])

    return batch_at
