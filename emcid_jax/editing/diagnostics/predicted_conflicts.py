"""Conflicts and neighbours of a bank before it is solved, from keys and memories alone.

A layer's weight change follows from the keys, the second moment and the residuals alone, and what
it adds to a prompt of key k, `dW k`, is added to the residual stream. So all layers are solved by
the solver that will solve them, with the pristine keys: each is asked for its share of what the
layers below it are predicted to leave of the offset. Left out is that keys, and what blocks above
make of a change, change with it. Similarity is the cosine of keys whitened by C, kept concepts
included: what the solve can tell apart, not what looks alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from emcid_jax.concepts import spans
from emcid_jax.concepts.conflicts import Conflict, find_conflicts
from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.encoder.blockwise import Blocks, SourcePrompts, prompt_means, split_prompts
from emcid_jax.editing.encoder.sites import Site, by_site
from emcid_jax.editing.moments.second_moment import SecondMoments, exact
from emcid_jax.editing.stage_two import preservation, solve
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh

SIMILAR = 0.9
"""Whitened cosine from which two keys with different targets collide."""


class Collision(NamedTuple):
    """Two edits whose sources the solve can hardly tell apart."""

    sources: tuple[str, str]
    similarity: float
    """Whitened cosine of the keys, mean over layers."""
    targets: float
    """Cosine of the two offsets: at 1 the edits want the same."""


class Neighbour(NamedTuple):
    """What the edit will do to a concept: an unedited one, or an edited one itself."""

    name: str
    nearest: str
    """The edited source (another one) that is most similar."""
    similarity: float
    drift: float
    """Predicted |change of the state at block L| over |the state|."""


class KeyMap(NamedTuple):
    """How alike keys are: whitened cosines, mean over layers."""

    rows: tuple[str, ...]
    """Sources of edits, then names to keep."""
    columns: tuple[str, ...]
    """Sources of edits, in the same order."""
    cosines: Float64[np.ndarray, "row column"]


class Prediction(NamedTuple):
    """Everything found, ranked: the worst first."""

    collisions: tuple[Collision, ...]
    kept: tuple[Neighbour, ...]
    """Concepts to keep, by drift."""
    unmet: tuple[tuple[str, float], ...]
    """Edited sources with the share of their offset that will be missed."""
    keys: KeyMap
    """All edits, and all names to keep."""
    contradictions: tuple[str, ...]
    """A line per chain or cycle among the requests, and per concept both protected and edited."""


@dataclasses.dataclass(frozen=True, eq=False)
class CleanRun:
    """Prompts of some requests through the pristine encoder."""

    keys: Mapping[int, Float64[np.ndarray, "request key"]]
    """Layer -> input of fc2 at the last subject token, mean over the request's prompts."""
    states: Float64[np.ndarray, "request dim"]
    """Output of the last of the layers there, mean over the prompts."""


def predict(
    concepts: ConceptBank,
    encoder: TextEncoder,
    where: Sequence[Site],
    moments: SecondMoments,
    config: StageTwoConfig,
    keep: Sequence[str] = (),
) -> Prediction:
    """What solving the bank will do to its own concepts and to those to `keep`.

    Args:
        concepts: the bank; those of strength 0 are left out.
        encoder: the base model's text encoder.
        where: sites of the memories.
        moments: its second moments, with the layers of `config`.
        config: Stage II's settings.
        keep: names that the edit should not change, in the templates of the bank's first request.

    Raises:
        UserError: an empty bank, a name that has no place in a prompt, what `preservation.protect`
            or the solver raise.
    """
    active = concepts.active
    if not active:
        raise UserError("the bank has no concept of strength > 0; add one")
    requests = [concept.request for concept in active]
    kept = kept_requests(keep, requests[0].templates)
    offsets = np.array(
        [c.strength * concepts.records[c.memory].memory.delta.astype(np.float64) for c in active]
    )
    offsets = by_site(offsets, tuple(where))[encoder.name].reshape(len(active), -1)
    # Apart, for the requests' shapes are those that the solve compiles.
    runs = [clean_run(encoder, part, config.layers) for part in (requests, kept) if part]
    states = np.concatenate([run.states for run in runs])
    protection = preservation.protect(encoder, requests, config)
    strength = solve.effective_strength(config)
    weights = np.array([request.weight for request in requests])
    count, layers = len(requests), len(config.layers)
    similarity = np.zeros((count + len(kept), count))
    change = np.zeros((count + len(kept), offsets.shape[1]))
    for index, layer in enumerate(config.layers):
        solver, moment = solve.layer_solver(config, layer, moments.moment(layer), protection)
        keys = np.concatenate([run.keys[layer] for run in runs])
        white = moment.factor.whiten(keys.T).T
        similarity += cosines(white, white[:count]) / layers
        residuals = (offsets - change[:count]) / (layers - index)
        solution = solver(keys[:count], residuals, moment, weights, strength)
        change += keys @ solution.delta.T
    sources = [request.source for request in requests]
    others = similarity - 2 * np.eye(count + len(kept), count)  # Nobody is his own neighbour.
    drift = np.linalg.norm(change, axis=1) / np.linalg.norm(states, axis=1)
    neighbours = [
        Neighbour(name, sources[near], float(others[row, near]), float(drift[row]))
        for row, name in enumerate(keep, start=count)
        for near in [int(others[row].argmax())]
    ]
    missed = np.linalg.norm(change[:count] - offsets, axis=1) / np.linalg.norm(offsets, axis=1)
    unmet = sorted(zip(sources, missed.tolist(), strict=True), key=lambda pair: -pair[1])
    return Prediction(
        collisions(sources, similarity[:count], cosines(offsets, offsets)),
        tuple(sorted(neighbours, key=lambda neighbour: -neighbour.drift)),
        tuple(unmet),
        KeyMap((*sources, *keep), tuple(sources), similarity),
        contradictions(requests, keep),
    )


def kept_requests(names: Sequence[str], templates: tuple[str, ...]) -> list[EditRequest]:
    """Requests that stand for names to keep: only their source prompts mean anything."""
    # The destination is not read; it must differ from the name for the request to be one.
    return [EditRequest(name, f"not {name}", templates, origin="keep") for name in names]


def most_similar(keys: KeyMap, edits: int = 30, kept: int = 15) -> KeyMap:
    """The part of a key map with the concepts most like others, alike ones next to each other."""
    count = len(keys.columns)
    others = keys.cosines - 2 * np.eye(*keys.cosines.shape)
    columns = np.sort(np.argsort(-others.max(0), kind="stable")[:edits])
    columns = columns[_alike(keys.cosines[np.ix_(columns, columns)])]
    best = keys.cosines[count:, columns].max(1, initial=-1.0)
    rows = np.concatenate([columns, count + np.argsort(-best, kind="stable")[:kept]])
    return KeyMap(
        tuple(keys.rows[i] for i in rows),
        tuple(keys.columns[i] for i in columns),
        keys.cosines[np.ix_(rows, columns)],
    )


def _alike(cosines: Float64[np.ndarray, "row row"]) -> Int[np.ndarray, " row"]:
    """An order in which alike rows are neighbours: leaves of the clustering by mean cosine."""
    from scipy.cluster import hierarchy

    if len(cosines) < 3:
        return np.arange(len(cosines))
    above = np.triu_indices(len(cosines), 1)
    tree = hierarchy.linkage(np.maximum(1 - cosines[above], 0), "average")
    return hierarchy.leaves_list(tree).astype(np.int64)


def clean_run(
    encoder: TextEncoder, requests: Sequence[EditRequest], layers: Sequence[int]
) -> CleanRun:
    """Keys of `layers` and states after the last of them, of every request's source prompts."""
    rectangle = spans.source_prompts(encoder.tokenizer, requests)
    prompts = SourcePrompts(*rectangle)
    mesh = make_mesh()
    blocks = Blocks(exact(encoder.model, encoder.params), encoder.params, mesh)
    chunks = split_prompts(prompts, mesh)
    keys, runs = {}, []
    for layer in range(layers[-1] + 1):
        runs = [blocks.run(chunk, layer) for chunk in chunks]
        if layer in layers:
            keys[layer] = prompt_means(chunks, [run.key for run in runs], prompts.mask)
        chunks = [
            dataclasses.replace(chunk, hidden=run.hidden)
            for chunk, run in zip(chunks, runs, strict=True)
        ]
    return CleanRun(keys, prompt_means(chunks, [run.state for run in runs], prompts.mask))


def cosines(
    rows: Float64[np.ndarray, "row size"], columns: Float64[np.ndarray, "column size"]
) -> Float64[np.ndarray, "row column"]:
    """Cosine of every row with every column vector."""
    rows, columns = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
        for x in (rows, columns)
    )
    return rows @ columns.T


def collisions(
    sources: Sequence[str],
    similarity: Float64[np.ndarray, "request request"],
    targets: Float64[np.ndarray, "request request"],
) -> tuple[Collision, ...]:
    """Pairs with nearly parallel keys, those whose offsets disagree most first."""
    first, second = np.nonzero(np.triu(similarity >= SIMILAR, 1))
    found = [
        Collision((sources[i], sources[j]), float(similarity[i, j]), float(targets[i, j]))
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return tuple(sorted(found, key=lambda pair: pair.similarity * (pair.targets - 1)))


def contradictions(requests: Sequence[EditRequest], keep: Sequence[str]) -> tuple[str, ...]:
    """What names alone say: chains, cycles, and concepts to be both protected and edited."""
    edited = {normalised(request.source) for request in requests}
    both = [f"{name!r} is edited and to be kept" for name in keep if normalised(name) in edited]
    conflicts: list[Conflict] = find_conflicts(requests)
    return (*both, *(conflict.message for conflict in conflicts))
