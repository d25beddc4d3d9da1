"""The end of a prompt through a text encoder, from the subject's last token on.

Attention is causal, so an offset at the subject's last token changes nothing before it. Keys and
values of the tokens before it are computed once per prompt; a step of Stage I then runs the two or
three tokens from the subject's last one to the end token, in place of the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.models.text.transformer import ClipMlp, layer_norm

Params = Mapping[str, Any]


class Before(NamedTuple):
    """What the tokens of prompts are to those behind them, in every block above the edited one."""

    keys: Float[Array, "row block token dim"]
    values: Float[Array, "row block token dim"]


def before(
    text: ClipTextModel, params: Params, hidden: Float[Array, "row token dim"], start: int
) -> Before:
    """Attention's keys and values of blocks `start` and above, given the input of block `start`."""
    ids = jnp.zeros(hidden.shape[:2], jnp.int32)
    out: Any = text.apply({"params": params}, ids, hidden=hidden, start=start)
    inputs = (hidden, *out.hidden[start:-1])
    found = []
    for layer, state in enumerate(inputs, start):
        block = _block(params, layer)
        normed = _norm(text.config, block["layer_norm1"], state)
        found.append([_dense(block["self_attn"][name], normed) for name in ("k_proj", "v_proj")])
    keys, values = (jnp.stack(part, axis=1) for part in zip(*found, strict=True))
    return Before(keys, values)


def end_features(
    text: ClipTextModel,
    params: Params,
    earlier: Before,
    tail: Float[Array, "row tail dim"],
    position: Int[Array, " row"],
    end: Int[Array, " row"],
    start: int,
) -> Float[Array, "row size"]:
    """Final features at the end token, projected where the encoder does so.

    Args:
        text: the text encoder.
        params: its parameters.
        earlier: see `before`.
        tail: input of block `start` at the tokens from `position` on; those behind `end` are not
            read.
        position: first token of the tail in its prompt.
        end: the end token, within the tail.
        start: the first block that runs.
    """
    config, hidden = text.config, tail
    rows, length, dim = tail.shape
    heads = config.num_attention_heads
    tokens = earlier.keys.shape[2]
    known = jnp.arange(tokens) < position[:, None, None]
    seen = jnp.concatenate(
        [
            jnp.broadcast_to(known, (rows, length, tokens)),
            jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length)),
        ],
        axis=2,
    )

    def split(states: Array) -> Array:
        return states.reshape(rows, -1, heads, dim // heads)

    for index in range(config.num_hidden_layers - start):
        block = _block(params, start + index)
        attend, normed = block["self_attn"], _norm(config, block["layer_norm1"], hidden)
        query = _dense(attend["q_proj"], normed)
        key, value = (
            jnp.concatenate([old[:, index], _dense(attend[name], normed)], axis=1)
            for old, name in zip(earlier, ("k_proj", "v_proj"), strict=True)
        )
        mixed = jax.nn.dot_product_attention(
            split(query), split(key), split(value), mask=seen[:, None], implementation="xla"
        )
        hidden = hidden + _dense(attend["out_proj"], mixed.reshape(rows, length, dim))
        normed = _norm(config, block["layer_norm2"], hidden)
        change, _ = cast(
            tuple[Array, Array],
            ClipMlp(config, text.dtype).apply({"params": block["mlp"]}, normed),
        )
        hidden = hidden + change
    last = jnp.take_along_axis(hidden, (end - position)[:, None, None], axis=1)
    pooled = _norm(config, params["text_model"]["final_layer_norm"], last)[:, 0]
    return pooled @ params["text_projection"]["kernel"] if text.projection else pooled


def _block(params: Params, layer: int) -> Params:
    return params["text_model"]["encoder"][f"layers.{layer}"]


def _norm(config: ClipTextConfig, params: Params, states: Array) -> Array:
    module = layer_norm(config.layer_norm_eps, jnp.float32, "norm")
    return cast(Array, module.clone(name=None).apply({"params": params}, states))


def _dense(params: Params, states: Array) -> Array:
    return states @ params["kernel"] + params["bias"]
