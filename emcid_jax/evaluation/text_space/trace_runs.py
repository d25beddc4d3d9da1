"""Causal tracing over names in templates: the clean run, the corrupted one, and those between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from emcid_jax.editing.encoder import causal_tracing
from emcid_jax.editing.encoder.blockwise import embed
from emcid_jax.editing.encoder.causal_tracing import Ends, Parts, Site
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.evaluation.text_space.trace_prompts import Subjects
from emcid_jax.evaluation.text_space.trace_scores import Finals, Recovery, recovery
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.runtime import parallel

Hidden = Float[np.ndarray, "name template token dim"]
Corrupt = Callable[[Hidden, Subjects, Mapping[str, Any]], Hidden]


class Traced(NamedTuple):
    """Names, and the two runs that every restored one lies between."""

    model: ClipTextModel
    params: Mapping[str, Any]
    """Of the text encoder, on all devices."""
    rows: tuple[jax.Array, jax.Array, jax.Array]
    """Corrupted input of block 0, token ids and last subject tokens; names and templates are
    folded into one axis, repeated up to a multiple of the devices."""
    parts: Parts
    """Of the clean run."""
    clean: Finals
    corrupted: Finals

    @property
    def nothing(self) -> Recovery:
        """The recovery when nothing is put back."""
        return recovery(self.corrupted, self.clean, self.corrupted)


def prepare(
    encoder: TextEncoder,
    subjects: Subjects,
    corruption: Corrupt | Int[np.ndarray, "name template token"],
) -> Traced:
    """The clean and the corrupted run.

    `corruption` changes the input of block 0, as `trace_prompts.with_noise` does, or is the token
    ids of other prompts.
    """
    model = exact(encoder.model, encoder.params)
    params = parallel.place(encoder.params, parallel.replicated(parallel.make_mesh()))
    table, shape = params["text_model"]["embeddings"], subjects.ends.shape

    def embedded(ids: np.ndarray) -> np.ndarray:
        found = np.asarray(embed(model, table, _rows(ids)))
        return _unfolded(found, shape).reshape(*ids.shape, -1)

    clean_input = embedded(subjects.ids)
    if callable(corruption):
        corrupted_input = corruption(clean_input, subjects, encoder.params)
    else:
        corrupted_input = embedded(corruption)
    places = _rows(subjects.ids), _rows(subjects.ends - 1)
    rows = _rows(corrupted_input), *places
    clean, parts = causal_tracing.run(model, params, _rows(clean_input), *places)
    corrupted, _ = causal_tracing.run(model, params, *rows)
    return Traced(model, params, rows, parts, _finals(clean, shape), _finals(corrupted, shape))


def measure(traced: Traced, site: Site, blocks: Sequence[int]) -> Recovery:
    """What comes back when `site` of the clean run is put back in `blocks`."""
    inside = jnp.isin(jnp.arange(traced.model.config.num_hidden_layers), jnp.asarray(blocks))
    ends = causal_tracing.restore(
        traced.model, traced.params, *traced.rows, traced.parts, site, inside
    )
    shape = traced.clean.end.shape[:2]
    return recovery(_finals(ends, shape), traced.clean, traced.corrupted)


def _rows(array: np.ndarray) -> jax.Array:
    """Name and template folded into one axis, see `Traced.rows`."""
    mesh = parallel.make_mesh()
    flat = array.reshape(-1, *array.shape[2:])
    count = parallel.padded_size(len(flat), mesh.size)
    return parallel.place(flat[np.arange(count) % len(flat)], parallel.sharded(mesh))


def _unfolded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array[: shape[0] * shape[1]].reshape(*shape, *array.shape[1:])


def _finals(ends: Ends, shape: tuple[int, ...]) -> Finals:
    return Finals(*(_unfolded(np.asarray(part), shape) for part in ends))
