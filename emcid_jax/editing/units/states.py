"""The input of a block's `fc1`: what a hidden unit sees."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from emcid_jax.editing.encoder.blockwise import at_positions
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.editing.units.contexts import NamePrompts
from emcid_jax.models.text.clip import ClipTextModel, TextEmbeddings
from emcid_jax.models.text.transformer import ClipAttention, layer_norm
from emcid_jax.runtime.parallel import (
    SPLIT,
    fetch,
    make_mesh,
    padded_size,
    place,
    replicated,
    sharded,
)

NAMES = 16
"""Names per call and device."""
WIDTH_STEP = 8
"""Prompts are cut to a multiple of so many tokens."""


def fc1_inputs(
    model: ClipTextModel, params: Mapping[str, Any], ids: Int[Array, "prompt token"], block: int
) -> Float[Array, "prompt token dim"]:
    """What `fc1` of `block` reads at every token: the residual stream there, normalised.

    The blocks below run, and of `block` only the attention: its MLP is most of its work.
    """
    text = params["text_model"]
    if block:
        below = model.clone(config=dataclasses.replace(model.config, num_hidden_layers=block))
        out: Any = below.apply({"params": params}, ids)
        stream = out.hidden[-1]
    else:
        embeddings = TextEmbeddings(model.config, model.dtype)
        stream = cast(Array, embeddings.apply({"params": text["embeddings"]}, ids))
    layer = text["encoder"][f"layers.{block}"]

    def normed(name: str, states: Array) -> Array:
        norm = layer_norm(model.config.layer_norm_eps, model.dtype, name).clone(name=None)
        return cast(Array, norm.apply({"params": layer[name]}, states))

    attend = ClipAttention(model.config, model.dtype, causal=True)
    mixed = attend.apply({"params": layer["self_attn"]}, normed("layer_norm1", stream))
    return normed("layer_norm2", stream + cast(Array, mixed))


def all_fc1_inputs(
    model: ClipTextModel, params: Mapping[str, Any], ids: Int[Array, "prompt token"]
) -> Float[Array, "prompt token block dim"]:
    """`fc1_inputs` of every block, from one pass through the encoder."""
    _, seen = model.apply(
        {"params": params},
        ids,
        capture_intermediates=lambda module, _: module.name == "layer_norm2",
        mutable=["intermediates"],
    )
    blocks: Any = seen["intermediates"]["text_model"]["encoder"]
    depth = model.config.num_hidden_layers
    found = [blocks[f"layers.{i}"]["layer_norm2"]["__call__"][0] for i in range(depth)]
    return jnp.stack(found, axis=2)


def name_states(
    model: ClipTextModel,
    params: Mapping[str, Any],
    prompts: NamePrompts,
    block: int,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "name context dim"]:
    """`fc1_inputs` at every name's last token.

    A name is computed by itself, in a program that knows how wide its own prompts are and nothing
    of other names: its states are the same bits whoever stands beside it.
    """
    mesh = make_mesh() if mesh is None else mesh
    model = exact(model, dict(params))
    device_params = place(params, replicated(mesh))
    longest = padded_size_of(prompts)
    widths = np.minimum(longest, prompts.ids.shape[2])
    shape = (*prompts.positions.shape, model.config.hidden_size)
    states = np.zeros(shape, np.float32)
    for width in np.unique(widths).tolist():
        group, size = np.flatnonzero(widths == width), NAMES * mesh.size
        for first in range(0, group.size, size):
            rows = group[first : first + size]
            filled = np.resize(rows, size)
            part = prompts.ids[filled, :, :width].astype(np.int32), prompts.positions[filled]
            found = _states(model, block, mesh, device_params, *place(part, sharded(mesh)))
            states[rows] = fetch(found)[: rows.size]
    return states


def padded_size_of(prompts: NamePrompts) -> Int[np.ndarray, " name"]:
    """Tokens that each name's prompts need up to the name's last one, rounded up."""
    last = np.where(prompts.mask, prompts.positions, 0).max(axis=1)
    return np.asarray([padded_size(int(one) + 1, WIDTH_STEP) for one in last], np.int64)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _states(
    model: ClipTextModel,
    block: int,
    mesh: Mesh,
    params: Mapping[str, Any],
    ids: Int[Array, "name context token"],
    positions: Int[Array, "name context"],
) -> Float[Array, "name context dim"]:

    def local(params: Any, ids: Array, positions: Array) -> Array:
        def one(prompts: tuple[Array, Array]) -> Array:
            return at_positions(fc1_inputs(model, params, prompts[0], block), prompts[1])

        return jax.lax.map(one, (ids, positions))

    return over_devices(local, mesh, params, ids, positions)


def over_devices(
    local: Callable[..., Array], mesh: Mesh, params: Mapping[str, Any], *split: Array
) -> Array:
    """`local(params, *split)` with the leading axis of `split` shared out over the devices, and
    products in full float32."""
    specs = PartitionSpec(), *(SPLIT for _ in split)
    shared = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    with jax.default_matmul_precision("highest"):
        return shared(params, *split)
