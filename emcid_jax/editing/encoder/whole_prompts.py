"""Whole prompts through a text encoder: states of one block at one token, and final features.

Attention is causal: prompts are cut after their end token and grouped by width, so that little
padding is computed. Every block runs as the same program, one compilation for each of few shapes.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64, Int

from emcid_jax.editing.encoder.blockwise import ROW_STEP, Blocks, Chunk
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.models.text.clip import ClipTextModel, end_positions
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.runtime.parallel import even_chunk, make_mesh, padded_size, place, sharded

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


class Prompts(NamedTuple):
    """Token ids with an end token, and one token of each, not past the end token."""

    ids: Int[np.ndarray, "prompt token"]
    positions: Int[np.ndarray, " prompt"]

    @classmethod
    def whole(cls, ids: Int[np.ndarray, "prompt token"]) -> Prompts:
        """Where no single token but the end token is of interest."""
        return cls(ids, np.zeros(len(ids), np.int64))


class TextChange(NamedTuple):
    """What prompts become with parameters `before` and `after`."""

    before: TextStates
    after: TextStates
    drift: Float64[np.ndarray, " prompt"]
    """|F' - F| / |F|: F are the final features of the tokens up to the end token, which is what
    the UNet attends to, but for padding."""


class Part(NamedTuple):
    """Prompts of about one length."""

    rows: Int[np.ndarray, " prompt"]
    """Which of all they are."""
    chunk: Chunk
    """Them, cut, and repeated up to a common size."""
    lengths: Int[np.ndarray, " prompt"]


def text_states(
    encoder: TextEncoder, params: Mapping[str, Any], prompts: Prompts, block: int
) -> TextStates:
    """Every prompt through a text encoder of this kind with `params`.

    `block` is the one after which the state at the position is wanted.
    """
    model = exact(encoder.model, dict(params))
    blocks, states = Blocks(model, params, make_mesh()), _no_states(encoder, prompts)
    for part in _parts(model, prompts):
        _run(blocks, part, block, states)
    return states


def end_features(
    encoder: TextEncoder, params: Mapping[str, Any], ids: Int[np.ndarray, "prompt token"]
) -> Float64[np.ndarray, "prompt dim"]:
    """Final features of prompts at their end tokens, as `text_states` gives them."""
    return text_states(encoder, params, Prompts.whole(ids), 0).pooled


def text_changes(
    encoder: TextEncoder,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    sets: Sequence[Prompts],
    block: int,
) -> list[TextChange]:
    """Sets of prompts with two kinds of parameters, all in one pass of few shapes.

    `block` is the one after which the states at the positions are wanted.
    """
    together = Prompts(*map(np.concatenate, zip(*sets, strict=True)))
    model, mesh = exact(encoder.model, dict(before)), make_mesh()
    both = [Blocks(model, params, mesh) for params in (before, after)]
    empty = (_no_states(encoder, together) for _ in both)
    whole = TextChange(*empty, drift=np.zeros(len(together.ids)))
    for part in _parts(model, together):
        old, new = (
            np.asarray(_run(blocks, part, block, states), np.float64)[: len(part.rows)]
            for blocks, states in zip(both, whole[:2], strict=True)
        )
        valid = np.arange(old.shape[1]) < part.lengths[:, None]
        change, size = (
            np.sqrt((np.square(x) * valid[..., None]).sum((1, 2))) for x in (new - old, old)
        )
        whole.drift[part.rows] = change / size
    ends = itertools.accumulate(len(prompts.ids) for prompts in sets)
    rows = [slice(end - len(prompts.ids), end) for end, prompts in zip(ends, sets, strict=True)]
    return [jax.tree.map(operator.itemgetter(some), whole) for some in rows]


def _no_states(encoder: TextEncoder, prompts: Prompts) -> TextStates:
    shape = len(prompts.ids), encoder.model.config.hidden_size
    return TextStates(np.zeros(shape), np.zeros(shape))


def _run(
    blocks: Blocks, part: Part, block: int, states: TextStates
) -> Float[Array, "row token dim"]:
    """Writes the part's rows of `states`; returns final features."""
    rows, chunk, _ = part
    run = blocks.run(blocks.forward(chunk, 0, block), block)
    chunk = dataclasses.replace(chunk, hidden=run.hidden)
    found = blocks.features(blocks.forward(chunk, block + 1, blocks.depth))
    states.state[rows] = np.asarray(run.state)[: len(rows)]
    states.pooled[rows] = np.asarray(found.pooled)[: len(rows)]
    return found.tokens


def _parts(model: ClipTextModel, prompts: Prompts) -> Iterator[Part]:
    """All prompts, at most `ROWS` at a time."""
    (ids, positions), mesh = prompts, make_mesh()
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
