"""Prompts on their way through the text encoder, a block at a time.

Stage II needs states at the subject token only, and attention is causal: prompts are cut after
their subject, grouped by width into chunks of few shapes, and every block runs as the same
compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float64, Int

from emcid_jax.models.text.clip import ClipTextModel, TextEmbeddings, at_positions
from emcid_jax.runtime.parallel import padded_size, place, readable, replicated, sharded

# Tokens of one chunk of prompts: large enough to fill a device, small enough to fit beside others.
CHUNK_TOKENS = 8192
# Prompts of one more width are worth another compiled program from this many tokens on.
GROUP_TOKENS = 1024
# Rows of a chunk are a multiple of this, so that programs fit edits of other sizes too; of fewer, a
# power of two.
ROW_STEP = 16


@dataclasses.dataclass(frozen=True, eq=False)
class SourcePrompts:
    """The requests' source prompts as a rectangle."""

    ids: Int[np.ndarray, "request prompt token"]
    """Token ids."""
    positions: Int[np.ndarray, "request prompt"]
    """Last subject token of each prompt."""
    mask: Bool[np.ndarray, "request prompt"]
    """False where a request has fewer prompts; prompt 0 is always there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Some prompts of one width, either all their requests' prompt 0 or none."""

    requests: Int[np.ndarray, " prompt"]
    """Request of each prompt; rows past these are padding."""
    first: bool
    ids: Int[Array, "row token"]
    positions: Int[Array, " row"]
    hidden: Float[Array, "row token dim"] | None = None
    """Input of the block reached; None before block 0."""


class Run(NamedTuple):
    """One block on one chunk: all tokens on the device, subject tokens wherever."""

    hidden: Float[Array, "row token dim"]
    keys: Float[Array, "row token inner"]
    state: Float[Array, "row dim"]
    key: Float[Array, "row inner"]
    value: Float[Array, "row dim"]


class Features(NamedTuple):
    """What comes out of the text encoder, wherever."""

    tokens: Float[Array, "row token dim"]
    pooled: Float[Array, "row dim"]
    """At the end token."""


class Blocks:
    """A text encoder's blocks, each run by the same compiled program (per chunk shape)."""

    def __init__(self, model: ClipTextModel, params: Mapping[str, Any], mesh: Mesh) -> None:
        # An edit may have added hidden units to the parameters.
        width = params["text_model"]["encoder"]["layers.0"]["mlp"]["fc1"]["kernel"].shape[1]
        config = dataclasses.replace(model.config, num_hidden_layers=1, intermediate_size=width)
        self._model = model.clone(config=config, projection=False)
        self._params = place(dict(params), replicated(mesh))
        self._mesh = mesh
        self.depth = model.config.num_hidden_layers
        """How many there are."""

    def run(self, chunk: Chunk, layer: int) -> Run:
        """Block `layer` on its input."""
        text_model = self._params["text_model"]
        hidden = chunk.hidden
        if hidden is None:
            hidden = embed(self._model, text_model["embeddings"], chunk.ids)
        encoder = {"layers.0": text_model["encoder"][f"layers.{layer}"]}
        params = {"text_model": text_model | {"encoder": encoder}}
        return _run_block(self._model, self._mesh, params, chunk.ids, chunk.positions, hidden)

    def forward(self, chunk: Chunk, start: int, stop: int) -> Chunk:
        """From the input of block `start` to the input of block `stop`."""
        for layer in range(start, stop):
            chunk = dataclasses.replace(chunk, hidden=self.run(chunk, layer).hidden)
        return chunk

    def features(self, chunk: Chunk) -> Features:
        """Final features of prompts that have been through all blocks."""
        text_model = self._params["text_model"]
        params = {"text_model": text_model | {"encoder": {}}}
        return _run_norm(self._model, self._mesh, params, chunk.ids, chunk.hidden)


@functools.partial(jax.jit, static_argnums=0)
def embed(
    model: ClipTextModel, params: Mapping[str, Any], ids: Int[Array, "row token"]
) -> Float[Array, "row token dim"]:
    """Input of block 0, from the parameters of the embeddings alone."""
    hidden: Any = TextEmbeddings(model.config, model.dtype).apply({"params": params}, ids)
    return hidden


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_block(
    model: ClipTextModel,
    mesh: Mesh,
    params: dict[str, Any],
    ids: Int[Array, "row token"],
    positions: Int[Array, " row"],
    hidden: Float[Array, "row token dim"],
) -> Run:
    with jax.default_matmul_precision("highest"):
        out: Any = model.apply({"params": params}, ids, hidden=hidden)

    def at_subject(tokens: Array) -> Array:
        picked = at_positions(tokens, positions)
        return readable(picked, mesh)

    state, keys, value = out.hidden[0], out.keys[0], out.values[0]
    return Run(state, keys, at_subject(state), at_subject(keys), at_subject(value))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_norm(
    model: ClipTextModel,
    mesh: Mesh,
    params: dict[str, Any],
    ids: Int[Array, "row token"],
    hidden: Float[Array, "row token dim"] | None,
) -> Features:
    out: Any = model.apply({"params": params}, ids, hidden=hidden, start=1)
    return Features(*(readable(x, mesh) for x in (out.last_hidden_state, out.pooled)))


@jax.jit
def write(
    hidden: Float[Array, "row token dim"],
    keys: Float[Array, "row token inner"],
    delta: Float[Array, "dim inner"],
) -> Float[Array, "row token dim"]:
    """Output of a block after `delta` was added to its fc2."""
    change = jnp.einsum("btk,dk->btd", keys, delta.astype(keys.dtype), precision="highest")
    return hidden + change


def split_prompts(prompts: SourcePrompts, mesh: Mesh) -> list[Chunk]:
    """Prompts cut after their subject and grouped by width, prompt 0 apart from the others."""
    request, prompt = np.nonzero(prompts.mask)
    positions = prompts.positions[request, prompt]
    chunks = []
    for first in (True, False):
        rows = np.flatnonzero((prompt == 0) == first)
        for group, width in _by_width(rows, positions[rows] + 1):
            parts = -(-group.size * width // CHUNK_TOKENS)
            rows_each = -(-group.size // parts)
            step = min(ROW_STEP, 1 << (rows_each - 1).bit_length())
            size = padded_size(padded_size(rows_each, step), mesh.size)
            for begin in range(0, group.size, size):
                part = group[begin : begin + size]
                padding = (0, size - part.size)
                ids = prompts.ids[request[part], prompt[part], :width].astype(np.int32)
                chunks.append(
                    Chunk(
                        request[part],
                        first,
                        place(np.pad(ids, (padding, (0, 0))), sharded(mesh)),
                        place(np.pad(positions[part].astype(np.int32), padding), sharded(mesh)),
                    )
                )
    return chunks


def _by_width(
    rows: Int[np.ndarray, " row"], lengths: Int[np.ndarray, " row"]
) -> list[tuple[np.ndarray, int]]:
    """Groups of rows of about equal length, with the longest length of each.

    Lengths share a group, upwards, until it has `GROUP_TOKENS` tokens: edits of few prompts
    compile one program, edits of many compute hardly any padding.
    """
    groups = []
    waiting = np.zeros(len(rows), bool)
    for length in np.unique(lengths).tolist():
        waiting |= lengths == length
        if waiting.sum() * length >= GROUP_TOKENS or length == lengths.max():
            groups.append((rows[waiting], length))
            waiting[:] = False
    return groups


def prompt_means(
    chunks: list[Chunk], rows: list[Array], mask: Bool[np.ndarray, "request prompt"]
) -> Float64[np.ndarray, "request size"]:
    """Mean over each request's prompts of one vector per prompt."""
    total = np.zeros((len(mask), rows[0].shape[1]))
    for chunk, values in zip(chunks, rows, strict=True):
        np.add.at(total, chunk.requests, np.asarray(values, np.float64)[: len(chunk.requests)])
    return total / mask.sum(axis=1, keepdims=True)


def last_states(
    blocks: Blocks,
    chunks: list[Chunk],
    runs: list[Run],
    layer: int,
    block: int,
    shape: tuple[int, ...],
) -> Float64[np.ndarray, "request dim"]:
    """Output of block `block` at prompt 0's subject, going on from the output of `layer`."""
    states = np.zeros(shape)
    for chunk, run in zip(chunks, runs, strict=True):
        if not chunk.first:
            continue
        if layer < block:
            ahead = blocks.forward(dataclasses.replace(chunk, hidden=run.hidden), layer + 1, block)
            run = blocks.run(ahead, block)
        states[chunk.requests] = np.asarray(run.state)[: len(chunk.requests)]
    return states


def written_states(
    chunks: list[Chunk], runs: list[Run], delta: np.ndarray, shape: tuple[int, ...]
) -> Float64[np.ndarray, "request dim"]:
    """Prompt 0's states once `delta` is in the block that `runs` are of."""
    states = np.zeros(shape)
    for chunk, run in zip(chunks, runs, strict=True):
        if chunk.first:
            change = np.asarray(run.key, np.float64) @ delta.T
            states[chunk.requests] = (np.asarray(run.state) + change)[: len(chunk.requests)]
    return states
