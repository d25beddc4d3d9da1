"""Causal tracing of the text encoder (ROME, arXiv 2202.05262, at the last subject token).

A prompt is run with a corrupted subject, and what some blocks computed at one token in the clean
run is put back. How much of the clean final features returns says what these blocks hold.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from emcid_jax.models.text.clip import ClipTextModel, TextOutput, at_positions
from emcid_jax.models.text.transformer import BlockOutput, ClipBlock, ClipMlp, layer_norm

Site = Literal["block", "attention", "mlp"]
"""What is put back: a block's output, or what its attention or its MLP adds to the residual
stream."""


class Parts(NamedTuple):
    """What every block computes at one token, by site."""

    block: Float[Array, "block prompt dim"]
    attention: Float[Array, "block prompt dim"]
    mlp: Float[Array, "block prompt dim"]


class Ends(NamedTuple):
    """Final features of a prompt."""

    end: Float[Array, "prompt dim"]
    """At its end token: the pooled text feature."""
    subject: Float[Array, "prompt dim"]
    """At its last subject token."""


@functools.partial(jax.jit, static_argnames="model")
def run(
    model: ClipTextModel,
    params: Mapping[str, Any],
    hidden: Float[Array, "prompt token dim"],
    ids: Int[Array, "prompt token"],
    positions: Int[Array, " prompt"],
) -> tuple[Ends, Parts]:
    """A whole run from the input of block 0, and what can be put back of it at `positions`.

    `ids` only say where the prompts end.
    """
    found = []
    for block in _blocks(params):
        out = _run_block(model, block, hidden)
        attended = out.hidden - out.value - hidden
        at = functools.partial(at_positions, positions=positions)
        found.append(Parts(at(out.hidden), at(attended), at(out.value)))
        hidden = out.hidden
    stacked = Parts(*(jnp.stack(part) for part in zip(*found, strict=True)))
    return _ends(model, params, hidden, ids, positions), stacked


@functools.partial(jax.jit, static_argnames=("model", "site"))
def restore(
    model: ClipTextModel,
    params: Mapping[str, Any],
    hidden: Float[Array, "prompt token dim"],
    ids: Int[Array, "prompt token"],
    positions: Int[Array, " prompt"],
    parts: Parts,
    site: Site,
    inside: Bool[Array, " block"],
) -> Ends:
    """The run on `hidden`, with `parts` of another run put back at `positions`.

    Everything after a place where something was put back is computed from it: an MLP reads the
    attention of its own block.

    Args:
        model: the text encoder.
        params: its parameters.
        hidden: input of block 0, corrupted.
        ids: say where the prompts end.
        positions: the token where parts are put back.
        parts: those of the clean run.
        site: which of them.
        inside: in which blocks.
    """
    here = (jnp.arange(hidden.shape[1]) == positions[:, None])[..., None]
    for layer, block in enumerate(_blocks(params)):
        out = _run_block(model, block, hidden)
        if site == "block":
            state = parts.block[layer]
        elif site == "mlp":
            state = at_positions(out.hidden - out.value, positions) + parts.mlp[layer]
        else:
            state = _after_attention(
                model, block, at_positions(hidden, positions) + parts.attention[layer]
            )
        hidden = jnp.where(here & inside[layer], state[:, None], out.hidden)
    return _ends(model, params, hidden, ids, positions)


def _blocks(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Parameters of every block, the lowest first."""
    encoder = params["text_model"]["encoder"]
    return [encoder[f"layers.{layer}"] for layer in range(len(encoder))]


def _run_block(
    model: ClipTextModel, params: Mapping[str, Any], hidden: Float[Array, "prompt token dim"]
) -> BlockOutput:
    block = ClipBlock(model.config, model.dtype, causal=True)
    with jax.default_matmul_precision("highest"):
        return cast(BlockOutput, block.apply({"params": params}, hidden))


def _after_attention(
    model: ClipTextModel, params: Mapping[str, Any], state: Float[Array, "prompt dim"]
) -> Float[Array, "prompt dim"]:
    """The block's output at a token whose state after attention is `state`."""
    norm = layer_norm(model.config.layer_norm_eps, model.dtype, "layer_norm2")
    mlp = ClipMlp(model.config, model.dtype)
    with jax.default_matmul_precision("highest"):
        normed = cast(Array, norm.apply({"params": params["layer_norm2"]}, state[:, None]))
        value, _ = cast(tuple[Array, Array], mlp.apply({"params": params["mlp"]}, normed))
    return state + value[:, 0]


def _ends(
    model: ClipTextModel,
    params: Mapping[str, Any],
    hidden: Float[Array, "prompt token dim"],
    ids: Int[Array, "prompt token"],
    positions: Int[Array, " prompt"],
) -> Ends:
    """Final norm and the two tokens."""
    depth = model.config.num_hidden_layers
    out = cast(TextOutput, model.apply({"params": params}, ids, hidden=hidden, start=depth))
    return Ends(out.pooled, at_positions(out.last_hidden_state, positions))
