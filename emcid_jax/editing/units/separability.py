"""Which block tells the names of an edit apart best: what `stage_one.layer` is chosen by."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.templates import SLOT
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.editing.units import gates
from emcid_jax.editing.units.contexts import NamePrompts, name_prompts
from emcid_jax.editing.units.states import WIDTH_STEP, all_fc1_inputs, over_devices
from emcid_jax.editing.units.statistics import PHRASE_CONTEXTS, phrases, within_names
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.runtime.parallel import (
    fetch,
    make_mesh,
    padded_size,
    place,
    replicated,
    sharded,
)

NAMES = 100
"""Most names that are compared, and as many phrases of captions beside them."""
BATCH = 128
"""Prompts per call and device."""


def by_block(
    encoder: TextEncoder, names: Sequence[str], pool: Sequence[str], mesh: Mesh | None = None
) -> tuple[float, ...]:
    """For every block, the share of the names that are separable there, see `separable`.

    At most `NAMES` of the names, spread evenly, beside phrases of the pool, all behind ten
    beginnings of captions. That is one pass of at most 2,000 prompts through the encoder, each cut
    behind its name. With CLIP's tokens and the bundled captions that is 21,000 tokens, as much as
    270 whole prompts: under three forward passes for each of 100 requests.

    Args:
        encoder: the base model's text encoder.
        names: the sources of an edit.
        pool: beginnings of captions, see `contexts.beginnings`. What phrases are taken from too,
            for the captions themselves are not kept.
        mesh: devices that prompts are split over (default: all).

    Returns:
        Shares from 0 to 1; empty if no two names fit behind the beginnings.
    """
    chosen = np.linspace(0, len(names) - 1, min(NAMES, len(names))).round().astype(int)
    asked = [names[i] for i in chosen.tolist()]
    said = [words for one in pool if (words := one.removesuffix(SLOT).strip())]
    texts = [*asked, *phrases(said, NAMES, seed=0)]
    prompts = name_prompts(
        encoder.tokenizer, texts, [()] * len(texts), pool, min(PHRASE_CONTEXTS, len(pool)), texts
    )
    fit = np.flatnonzero(prompts.mask.all(axis=1))
    count = int((fit < len(asked)).sum())
    if not count or len(fit) < 2:
        return ()
    keys = [normalised(texts[i]) for i in fit.tolist()]
    states = _states(encoder, NamePrompts(*(part[fit] for part in prompts)), mesh)
    ends = _ends_with(keys, keys[:count])
    return tuple(float(separable(one, ends).mean()) for one in np.moveaxis(states, 2, 0))


def separable(
    states: Float[np.ndarray, "name context dim"], same: Bool[np.ndarray, "name gate"]
) -> Bool[np.ndarray, " gate"]:
    """Whether each of the first names scores, in all of its contexts, above all other names.

    Scores are those of the closed form (`gates.start`). Its metric is of these very states: their
    covariance within the names, and about the mean of all.

    Args:
        states: of every name in its contexts; the gates are those of the first ones.
        same: names that are not held against a gate, for its own name ends there.
    """
    rows = states.reshape(-1, states.shape[-1]).astype(np.float64)
    mean = rows.mean(axis=0)
    apart = rows - mean
    space = gates.metric_of(mean, within_names(states), apart.T @ apart / len(rows))
    own, count = space.whiten(states), same.shape[1]
    first = gates.start(own[:count], np.ones((count, own.shape[1]), bool))
    scores = own @ first.T
    each = np.arange(count)
    lowest = scores[each, :, each].min(axis=1)
    highest = np.where(same[:, None], -np.inf, scores).max(axis=(0, 1))
    return lowest > highest


def _ends_with(keys: Sequence[str], gates: Sequence[str]) -> Bool[np.ndarray, "name gate"]:
    return np.array([[f" {key}".endswith(f" {gate}") for gate in gates] for key in keys])


def _states(
    encoder: TextEncoder, prompts: NamePrompts, mesh: Mesh | None
) -> Float[np.ndarray, "name context block dim"]:
    """The states of every block at the names' last tokens."""
    mesh = make_mesh() if mesh is None else mesh
    model = exact(encoder.model, dict(encoder.params))
    params = place(encoder.params, replicated(mesh))
    ids = prompts.ids.reshape(-1, prompts.ids.shape[2]).astype(np.int32)
    positions = prompts.positions.reshape(-1)
    size, order = padded_size(min(BATCH * mesh.size, len(ids)), mesh.size), np.argsort(positions)
    states = np.zeros((len(ids), *_shape(encoder)), np.float32)
    for first in range(0, len(ids), size):
        rows = order[first : first + size]
        filled = np.resize(rows, size)  # One program for all batches of a width.
        width = padded_size(int(positions[rows].max()) + 1, WIDTH_STEP)
        part = place((ids[filled, :width], positions[filled]), sharded(mesh))
        states[rows] = fetch(_at_positions(model, mesh, params, *part))[: rows.size]
    return states.reshape(*prompts.positions.shape, *states.shape[1:])


def _shape(encoder: TextEncoder) -> tuple[int, int]:
    """Blocks, and the width of a state."""
    return encoder.model.config.num_hidden_layers, encoder.model.config.hidden_size


@functools.partial(jax.jit, static_argnums=(0, 1))
def _at_positions(
    model: ClipTextModel,
    mesh: Mesh,
    params: Mapping[str, Any],
    ids: Int[Array, "prompt token"],
    positions: Int[Array, " prompt"],
) -> Float[Array, "prompt block dim"]:

    def local(params: Any, ids: Array, positions: Array) -> Array:
        states = all_fc1_inputs(model, params, ids)
        return states[jnp.arange(len(ids)), positions]

    return over_devices(local, mesh, params, ids, positions)
