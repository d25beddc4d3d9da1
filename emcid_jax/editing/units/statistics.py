"""What a block's hidden units see of captions: measured once per encoder, before any request.

A gate is fitted from its own request and from this alone, so that requests do not change each
other's gates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float64, Int
from tqdm import tqdm

from emcid_jax.editing.moments.caption_batches import CaptionBatch, canonical, make_batches
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.editing.units.contexts import beginnings, name_prompts
from emcid_jax.editing.units.states import fc1_inputs, name_states, over_devices
from emcid_jax.models.text.clip import ClipTextModel, end_positions
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import (
    fetch,
    make_mesh,
    padded_size,
    place,
    replicated,
    sharded,
)
from emcid_jax.storage import checksums

REFERENCE = 2**24
"""Numbers in the reference: rows of it times the encoder's width."""
RECENT = 8
"""Token ids that are kept with a row of the reference: names of up to so many are recognised."""
POOL = 1000
"""Beginnings of captions that contexts are chosen from."""
PHRASES = 400
"""Phrases of captions that the covariance within a name is measured on."""
PHRASE_CONTEXTS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class UnitStatistics:
    """Statistics of the input of one block's `fc1`."""

    block: int
    model_hash: str
    """`params_hash` of the text encoder."""
    captions: int
    mean: Float64[np.ndarray, " dim"]
    """Over all tokens of all captions."""
    covariance: Float64[np.ndarray, "dim dim"]
    """The same, about `mean`."""
    within: Float64[np.ndarray, "dim dim"]
    """Covariance at a name's last token, from sentence to sentence, about the name's own mean."""
    reference: Float[np.ndarray, "row dim"]
    """A sample of the captions' tokens, none twice, float16."""
    recent: Int[np.ndarray, "row recent"]
    """The last token ids up to each of them, its own last; 0 before the caption."""
    pool: tuple[str, ...]
    """Beginnings of captions, see `contexts.beginnings`."""


def measure(
    encoder: TextEncoder,
    captions: Sequence[str],
    block: int,
    *,
    seed: int = 0,
    batch: int = 256,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> UnitStatistics:
    """One pass over captions, split over the devices of `mesh`; the same for the same arguments.

    UserError if the encoder has no such block or there is no caption.
    """
    model, params = encoder.model, encoder.params
    depth, dim = model.config.num_hidden_layers, model.config.hidden_size
    if not 0 <= block < depth:
        raise UserError(f"config.stage_two.layers is ({block},); blocks are 0 to {depth - 1}")
    if not captions:
        raise UserError("config.moments.captions holds no caption; give at least one")
    mesh = make_mesh() if mesh is None else mesh
    ids = tokenize(encoder.tokenizer, captions)
    lengths = np.asarray(end_positions(jnp.asarray(ids), model.config.eos_token_id)) + 1
    ids, lengths = canonical(ids, lengths, model.config.max_position_embeddings)
    batches = make_batches(ids, lengths, padded_size(batch, mesh.size), mesh.size)
    every = max(1, -(-sum(int(np.count_nonzero(one.counts)) for one in batches) * dim // REFERENCE))
    device_params = place(params, replicated(mesh))
    text = exact(model, dict(params))
    total, square, count, seen = np.zeros(dim), np.zeros((dim, dim)), 0, 0
    reference, recent = [], []
    for one in tqdm(batches, "Captions", unit="batch", disable=not progress):
        split = place((one.ids, one.places), sharded(mesh))
        states = fetch(_at_places(text, block, mesh, device_params, *split))
        valid = np.flatnonzero(one.counts)
        rows, times = states[valid].astype(np.float64), one.counts[valid].astype(np.float64)
        total += times @ rows
        square += (rows * times[:, None]).T @ rows
        count += int(times.sum())
        kept = valid[(-seen) % every :: every]
        seen += len(valid)
        reference.append(states[kept].astype(np.float16))
        recent.append(_recent(one, kept, mesh.size))
    mean = total / count
    pool = beginnings(captions, POOL, seed)
    return UnitStatistics(
        block,
        params_hash(params),
        len(captions),
        mean,
        square / count - np.outer(mean, mean),
        _within(encoder, captions, pool, block, seed, mesh),
        np.concatenate(reference),
        np.concatenate(recent),
        pool,
    )


def phrases(captions: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` phrases of one to three words of captions, none twice."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for index in rng.permutation(len(captions)):
        words = captions[int(index)].split()
        first, size = int(rng.integers(len(words))), int(rng.integers(1, 4))
        part = [word.strip(".,;:!?'\"") for word in words[first : first + size]]
        if all(word.isascii() and word.isalpha() for word in part):
            found[" ".join(part)] = None
        if len(found) == count:
            break
    return list(found)


def within_names(
    states: Float[np.ndarray, "name context dim"],
) -> Float64[np.ndarray, "dim dim"]:
    """Covariance of names' states about each name's own mean."""
    apart = states.astype(np.float64)
    apart = (apart - apart.mean(axis=1, keepdims=True)).reshape(-1, states.shape[-1])
    return apart.T @ apart / (len(states) * max(1, states.shape[1] - 1))


def write_statistics(path: Path, found: UnitStatistics) -> None:
    """Writes them to one safetensors file with a checksum, by one rename."""
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    about = {name: getattr(found, name) for name in ("block", "model_hash", "captions", "pool")}
    checksums.write_tensors(path, arrays, {"unit_statistics": json.dumps(about)})


def read_statistics(path: Path) -> UnitStatistics:
    """What `write_statistics` wrote. UserError if it is not such a file, or damaged."""
    found = checksums.read_tensors(path, _KIND, _REMEDY)
    try:
        if not found.sealed:
            raise ValueError("it has no checksum")
        about = json.loads(found.about["unit_statistics"])
        about["pool"] = tuple(about["pool"])
        arrays: dict[str, Any] = {name: found.arrays[name] for name in _ARRAYS}
        return UnitStatistics(**about, **arrays)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no {_KIND} ({error}); {_REMEDY}") from error


_KIND, _REMEDY = "statistics of units", "delete it, that they are measured again"
_ARRAYS = ("mean", "covariance", "within", "reference", "recent")


def _within(
    encoder: TextEncoder,
    captions: Sequence[str],
    pool: Sequence[str],
    block: int,
    seed: int,
    mesh: Mesh,
) -> Float64[np.ndarray, "dim dim"]:
    names = phrases(captions, PHRASES, seed)
    if not names:
        raise UserError("config.moments.captions holds no plain word; give captions in words")
    prompts = name_prompts(
        encoder.tokenizer,
        names,
        [()] * len(names),
        pool,
        PHRASE_CONTEXTS,
        [f"captions: {name}" for name in names],
    )
    states = name_states(encoder.model, encoder.params, prompts, block, mesh)
    return within_names(states)


def _recent(
    batch: CaptionBatch, slots: Int[np.ndarray, " slot"], devices: int
) -> Int[np.ndarray, "slot recent"]:
    """The last token ids up to the places in these slots."""
    width, share = batch.ids.shape[1], len(batch.ids) // devices
    places = batch.places[slots]
    device = slots // (len(batch.places) // devices)
    caption, token = device * share + places // width, places % width
    padded = np.pad(batch.ids, ((0, 0), (RECENT - 1, 0)))
    return padded[caption[:, None], token[:, None] + np.arange(RECENT)].astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _at_places(
    model: ClipTextModel,
    block: int,
    mesh: Mesh,
    params: Mapping[str, Any],
    ids: Int[Array, "caption token"],
    places: Int[Array, " slot"],
) -> Float[Array, "slot dim"]:

    def local(params: Any, ids: Array, places: Array) -> Array:
        states = fc1_inputs(model, params, ids, block)
        return states.reshape(ids.size, -1)[places]

    return over_devices(local, mesh, params, ids, places)
