"""The attention loss: what the UNet's attention reads of a text, without running the UNet.

Text enters the UNet through the keys and values of its attention layers alone. A layer's answer to
a query is a function of the text's states and nothing else, so answers to queries that the UNet
asks of any picture say what it would draw. They see every token, the source's first words too,
which the pooled features of the text loss hardly show; and they cost a fraction of a noise loss,
which runs the whole UNet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array
from jaxtyping import Float, Int

from emcid_jax.diffusion.noise import seeded_noise
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.image.unet import UNet2DCondition
from emcid_jax.models.image.unet_config import UNetConfig
from emcid_jax.pipelines.generate import time_ids, unguided
from emcid_jax.pipelines.pipeline import Pipeline, conditioning_shapes

Params = Mapping[str, Any]

QUERIES = 32
"""Of each layer, all heads of a pixel counted once."""
PICTURES = 8
"""That the queries are asked of, each at a timestep of its own."""


class Layer(NamedTuple):
    """An attention layer's projections of the text, and queries to it."""

    query: Float[Array, "query head dim"]
    """Scaled by 1/sqrt(dim)."""
    key: Float[Array, "text inner"]
    value: Float[Array, "text inner"]
    out: Float[Array, "inner channel"]


class Wanted(NamedTuple):
    """What the attention loss is evaluated on; rows are concepts and prompts, folded."""

    answers: tuple[Float[Array, "row query _"], ...]
    """Of each layer to the destination prompts."""
    distance: Float[Array, "layer concept"]
    """Mean square of what the answers to the clean source prompts differ from them."""


def layers(pipeline: Pipeline) -> tuple[Layer, ...]:
    """All layers that read the text, with queries that the UNet asks of noise.

    They depend on the model alone.
    """
    noise = seeded_noise(pipeline.latent_size, range(PICTURES))[:, 0]
    last = pipeline.schedule.num_train_timesteps - 1
    timesteps = np.linspace(0, last, PICTURES).round().astype(np.int32)
    text = unguided(pipeline, "")._replace(time_ids=time_ids(pipeline, 1))
    text = jax.tree.map(lambda part: np.repeat(part, PICTURES, axis=0), text)
    return _layers(pipeline.unet, pipeline.params["unet"], noise, timesteps, text)


def layer_shapes(pipeline: Pipeline, unet: Params) -> tuple[Layer, ...]:
    """The shapes of `layers`, given those of the UNet's parameters."""
    noise = jax.ShapeDtypeStruct((PICTURES, *pipeline.latent_size), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((PICTURES,), jnp.int32)
    text = conditioning_shapes(pipeline, PICTURES)
    made = functools.partial(_layers, pipeline.unet)
    return cast(tuple[Layer, ...], jax.eval_shape(made, unet, noise, timesteps, text))


@functools.partial(jax.jit, static_argnames="unet")
def _layers(
    unet: UNet2DCondition,
    params: Params,
    noise: Float[Array, "picture height width channel"],
    timesteps: Int[Array, " picture"],
    text: Conditioning,
) -> tuple[Layer, ...]:
    _, kept = unet.apply(
        {"params": params},
        noise,
        timesteps,
        *text,
        capture_intermediates=lambda module, _: module.name == "to_q",
        mutable=["intermediates"],
    )
    found = []
    for (*path, _, _), (asked,) in sorted(flatten_dict(kept["intermediates"]).items()):
        if path[-1] != "attn2":
            continue
        own = functools.reduce(lambda tree, part: tree[part], path, params)
        rows = asked.reshape(-1, asked.shape[-1]).astype(jnp.float32)
        rows = rows[np.linspace(0, len(rows) - 1, QUERIES).round().astype(int)]
        query = rows.reshape(QUERIES, heads(unet.config, path[0]), -1)
        kernels = (own[name]["kernel"] for name in ("to_k", "to_v", "to_out.0"))
        found.append(
            Layer(query * query.shape[-1] ** -0.5, *(k.astype(jnp.float32) for k in kernels))
        )
    return tuple(found)


def heads(config: UNetConfig, block: str) -> int:
    """Attention heads in a block of the UNet, by its name."""
    kind, _, index = block.partition(".")
    counts = config.attention_head_dim
    if kind == "mid_block":
        return counts[-1]
    level = int(index)
    return counts[level] if kind == "down_blocks" else counts[-1 - level]


def answers(
    layer: Layer, states: Float[Array, "row token text"], cut: int
) -> Float[Array, "row query channel"]:
    """What `layer` reads of texts.

    The last token stands for `cut` more like it: the padding that was cut off.
    """
    rows, tokens, _ = states.shape
    queries, count, dim = layer.query.shape
    key = (states @ layer.key).reshape(rows, tokens, count, dim)
    value = (states @ layer.value).reshape(rows, tokens, count, dim)
    logits = jnp.einsum("qhd,rthd->rhqt", layer.query, key)
    weights = nn.softmax(logits.at[..., -1].add(np.log1p(cut)), axis=-1)
    read = jnp.einsum("rhqt,rthd->rqhd", weights, value)
    return read.reshape(rows, queries, -1) @ layer.out


def distances(
    found: Sequence[Layer],
    states: Float[Array, "row token text"],
    wanted: Sequence[Float[Array, "row query _"]],
    cut: int,
) -> Float[Array, "layer row"]:
    """Mean square of what the answers to texts differ from those that are wanted."""
    pairs = zip(found, wanted, strict=True)
    apart = [jnp.square(answers(layer, states, cut) - goal) for layer, goal in pairs]
    return jnp.stack([part.mean(axis=(1, 2)) for part in apart])
