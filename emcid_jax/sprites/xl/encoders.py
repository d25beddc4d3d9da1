"""The two text encoders of the model of SDXL's shape, and what its UNet reads of them."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float16, Int
from tqdm import tqdm

from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.sprites.xl import recipe as sizes
from emcid_jax.sprites.xl.transplant import random_turn, shallower, turned, unnormed

Params = dict[str, Any]
_BATCH = 200


class Read(NamedTuple):
    """What the UNet is told about captions by one encoder."""

    states: Float16[np.ndarray, "caption token dim"]
    """Before the last block, without the final norm."""
    projected: Float16[np.ndarray, "caption projection"] | None
    """None from an encoder without a projection."""


def read(model: ClipTextModel, params: Params, ids: Int[np.ndarray, "caption token"]) -> Read:
    """Everything that SDXL's UNet reads of `ids`."""

    @jax.jit
    def encode(batch: Array) -> tuple[Array, Array | None]:
        out = cast(TextOutput, model.apply({"params": params}, batch))
        return jax.tree.map(lambda x: x.astype(jnp.float16), (out.hidden[-2], out.projected))

    parts = [
        jax.device_get(encode(ids[start : start + _BATCH]))
        for start in tqdm(range(0, len(ids), _BATCH), desc="text states", mininterval=5)
    ]
    states, projected = zip(*parts, strict=True)
    told = None if projected[0] is None else np.concatenate(projected)
    return Read(np.concatenate(states), told)


def first_encoder(text: Params) -> Params:
    """The first sprite model's encoder with fewer blocks and hidden units."""
    width = text["text_model"]["final_layer_norm"]["scale"].shape[0]
    return shallower(text, sizes.FIRST_BLOCKS, sizes.MLP * width)


def second_encoder(
    text: Params,
    heads: int,
    end: int,
    pad: int,
    pooled: Float[np.ndarray, "caption dim"],
    seed: int,
) -> Params:
    """Other blocks of the same encoder in a wider basis, with a projection.

    The token `pad` stands for the token `end`, with which the first encoder pads. The projection
    keeps the directions in which the `pooled` states of captions differ most.
    """
    width = sizes.SECOND_WIDTH
    small = shallower(text, sizes.SECOND_BLOCKS, sizes.MLP * width)
    params = turned(small, width, heads, seed)
    table = params["text_model"]["embeddings"]["token_embedding"]
    table["embedding"] = jnp.asarray(table["embedding"]).at[pad].set(table["embedding"][end])
    spread, axes = np.linalg.svd(pooled - pooled.mean(0), full_matrices=False)[1:]
    largest = axes[: sizes.PROJECTED].T * (len(pooled) ** 0.5 / spread[0])
    turn = random_turn(pooled.shape[1], width, seed)
    kernel = unnormed(largest, text["text_model"]["final_layer_norm"], turn)
    return {**params, "text_projection": {"kernel": jnp.asarray(kernel)}}
