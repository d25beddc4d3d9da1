"""Whole prompts through a text encoder: states of one block at one token, and final features.

Attention is causal: prompts are cut after their end token and grouped by width, so that little
padding is computed. Every block runs as the same program, one compilation for each of few shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from emcid_jax.editing.propagation import ROW_STEP, Blocks, Chunk
from emcid_jax.editing.second_moment import exact
from emcid_jax.models.clip_text import ClipTextModel, end_positions
from emcid_jax.parallel import even_chunk, make_mesh, padded_size, place, sharded
from emcid_jax.pipeline import Pipeline

ROWS = 256
"""Most prompts of one call."""
WIDTH_STEP = 4
"""Token widths are multiples of this."""


class TextStates(NamedTuple):
    """What prompts become, float64 on the host."""

    state: Float64[np.ndarray, "prompt dim"]
    """Output of the block at the position."""
    pooled: Float64[np.ndarray, "prompt dim"]
    """Final features at the end token."""


class Part(NamedTuple):
    """Prompts of about one length."""

    rows: Int[np.ndarray, " prompt"]
    """Which of all they are."""
    chunk: Chunk
    """Them, cut, and repeated up to a common size."""
    lengths: Int[np.ndarray, " prompt"]


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
    model = exact(pipeline.text, dict(params))
    blocks, depth = Blocks(model, params, make_mesh()), model.config.num_hidden_layers
    for rows, chunk, _ in _parts(model, ids, positions):
        before = blocks.forward(chunk, 0, block)
        run = blocks.run(before, block)
        after = dataclasses.replace(chunk, hidden=run.hidden)
        found = blocks.features(blocks.forward(after, block + 1, depth))
        states.state[rows] = np.asarray(run.state)[: len(rows)]
        states.pooled[rows] = np.asarray(found.pooled)[: len(rows)]
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
    model = exact(pipeline.text, dict(before))
    mesh, depth = make_mesh(), model.config.num_hidden_layers
    both = [Blocks(model, params, mesh) for params in (before, after)]
    for rows, chunk, lengths in _parts(model, ids, np.zeros(len(ids), np.int32)):
        old, new = (
            np.asarray(blocks.features(blocks.forward(chunk, 0, depth)).tokens, np.float64)
            for blocks in both
        )
        old, new = old[: len(rows)], new[: len(rows)]
        valid = np.arange(chunk.ids.shape[1]) < lengths[:, None]
        change, size = (
            np.sqrt((np.square(x) * valid[..., None]).sum((1, 2))) for x in (new - old, old)
        )
        drift[rows] = change / size
    return drift


def _parts(
    model: ClipTextModel,
    ids: Int[np.ndarray, "prompt token"],
    positions: Int[np.ndarray, " prompt"],
) -> Iterator[Part]:
    """All prompts, at most `ROWS` at a time."""
    mesh = make_mesh()
    lengths = np.asarray(end_positions(jnp.asarray(ids), model.config.eos_token_id)) + 1
    widths = np.minimum(-(-lengths // WIDTH_STEP) * WIDTH_STEP, ids.shape[1])
    for width in np.unique(widths).tolist():
        group = np.flatnonzero(widths == width)
        size = padded_size(padded_size(even_chunk(group.size, ROWS), ROW_STEP), mesh.size)
        for first in range(0, group.size, size):
            rows = group[first : first + size]
            repeated = np.resize(rows, size)
            inputs = ids[repeated, :width].astype(np.int32), positions[repeated].astype(np.int32)
            chunk = Chunk(rows, True, *place(inputs, sharded(mesh)))
            yield Part(rows, chunk, lengths[rows])
