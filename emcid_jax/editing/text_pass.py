"""Whole prompts through a text encoder: states of one block at one token, and final features.

Attention is causal: prompts are cut after their end token and grouped by width, so that few
shapes are compiled and little padding is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float64, Int

from emcid_jax.editing.second_moment import exact
from emcid_jax.models.clip_text import ClipTextModel, end_positions
from emcid_jax.parallel import make_mesh, padded_size, replicated, sharded
from emcid_jax.pipeline import Pipeline

ROWS = 256
"""Most prompts of one call."""
WIDTH_STEP = 8
"""Token widths are multiples of this."""


class TextStates(NamedTuple):
    """What prompts become, float64 on the host."""

    state: Float64[np.ndarray, "prompt dim"]
    """Output of the block at the position."""
    pooled: Float64[np.ndarray, "prompt dim"]
    """Final features at the end token."""


def text_states(
    pipeline: Pipeline,
    params: Mapping[str, Any],
    ids: Int[np.ndarray, "prompt token"],
    positions: Int[np.ndarray, " prompt"],
    block: int,
) -> TextStates:
    """Every prompt through the text encoder with `params`.

    Args:
        pipeline: gives the kind of text encoder.
        params: its parameters, pristine or edited.
        ids: token ids with an end token.
        positions: the token, not past the end token, whose state is wanted.
        block: the block after which it is wanted.
    """
    dim = pipeline.text.config.hidden_size
    states = TextStates(np.zeros((len(ids), dim)), np.zeros((len(ids), dim)))
    mesh = make_mesh()
    model = exact(pipeline.text, dict(params))
    placed = jax.device_put(dict(params), replicated(mesh))
    for rows, cut, _ in _chunks(model, ids, mesh):
        places = np.resize(positions[rows], len(cut)).astype(np.int32)
        inputs = jax.device_put((cut, places), sharded(mesh))
        state, pooled, _ = _run(model, mesh, block, placed, *inputs)
        states.state[rows] = np.asarray(state)[: len(rows)]
        states.pooled[rows] = np.asarray(pooled)[: len(rows)]
    return states


def feature_drift(
    pipeline: Pipeline,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    ids: Int[np.ndarray, "prompt token"],
) -> Float64[np.ndarray, " prompt"]:
    """|F' - F| / |F| per prompt: F are the final features of its tokens up to the end token.

    That is what the UNet attends to, but for padding. `before` and `after` are parameters of the
    text encoder.
    """
    drift = np.zeros(len(ids))
    mesh = make_mesh()
    model = exact(pipeline.text, dict(before))
    both = [jax.device_put(dict(params), replicated(mesh)) for params in (before, after)]
    for rows, cut, lengths in _chunks(model, ids, mesh):
        inputs = jax.device_put((cut, np.zeros(len(cut), np.int32)), sharded(mesh))
        old, new = (
            np.asarray(_run(model, mesh, 0, params, *inputs)[2], np.float64)[: len(rows)]
            for params in both
        )
        valid = np.arange(cut.shape[1]) < lengths[:, None]
        change, size = (
            np.sqrt((np.square(x) * valid[..., None]).sum((1, 2))) for x in (new - old, old)
        )
        drift[rows] = change / size
    return drift


def _chunks(
    model: ClipTextModel, ids: Int[np.ndarray, "prompt token"], mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, their ids (cut, and repeated up to a common size), their lengths."""
    lengths = np.asarray(end_positions(jnp.asarray(ids), model.config.eos_token_id)) + 1
    widths = np.minimum(-(-lengths // WIDTH_STEP) * WIDTH_STEP, ids.shape[1])
    for width in np.unique(widths).tolist():
        group = np.flatnonzero(widths == width)
        size = padded_size(min(ROWS, 1 << (group.size - 1).bit_length()), mesh.size)
        for first in range(0, group.size, size):
            rows = group[first : first + size]
            cut = ids[np.resize(rows, size), :width].astype(np.int32)
            yield rows, cut, lengths[rows]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    model: ClipTextModel,
    mesh: Mesh,
    block: int,
    params: dict[str, Any],
    ids: Int[Array, "row token"],
    positions: Int[Array, " row"],
) -> tuple[Float[Array, "row dim"], Float[Array, "row dim"], Float[Array, "row token dim"]]:
    with jax.default_matmul_precision("highest"):
        out: Any = model.apply({"params": params}, ids)
    state = jnp.take_along_axis(out.hidden[block], positions[:, None, None], axis=1)[:, 0]
    return jax.lax.with_sharding_constraint(
        (state, out.pooled, out.last_hidden_state), replicated(mesh)
    )
