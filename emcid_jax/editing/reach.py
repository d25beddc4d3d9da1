"""How far an edit brings its own concepts, in text space: states at block L before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from emcid_jax.concepts import spans
from emcid_jax.editing.concept_bank import ConceptBank, common_block, target
from emcid_jax.editing.key_space import kept_requests
from emcid_jax.editing.text_pass import TextStates, text_states
from emcid_jax.errors import UserError
from emcid_jax.pipeline import Pipeline


class Reach(NamedTuple):
    """One concept; z is its target, h0 and h its state before and after, at prompt 0."""

    source: str
    dest: str
    strength: float
    asked: float
    """|z - h0|."""
    left: float
    """|z - h| / |z - h0|: 0 is there, 1 has not moved."""
    cosine: float
    """Of h - h0 with z - h0."""
    elsewhere: float | None
    """The same as `left` for its other prompts, where z - h0 is asked too: mean; None without."""
    gap: float
    """How far the prompt's final features at the end token are from the destination's, after the
    edit over before: 0 is the same."""
    shift: float
    """|h0 - h*| / |z - h*|, h* the state that Stage I started from: 0 on the model of the
    memories, and how much of the offset another model has moved on its own."""


def reach(
    concepts: ConceptBank, pipeline: Pipeline, edited: Mapping[str, Any]
) -> tuple[Reach, ...]:
    """Every concept of strength > 0, in the bank's order.

    Args:
        concepts: the bank; its memories may be of a relative of the model.
        pipeline: the pristine model.
        edited: parameters of its text encoder with the edit in them.

    Raises:
        UserError: no concept, memories of another width or several blocks, prompts that do not fit.
    """
    active = concepts.active
    if not active:
        raise UserError("the bank has no concept of strength > 0; add one")
    records = [concepts.records[concept.memory] for concept in active]
    block = common_block(records)
    targets = np.stack([target(r.memory, c.strength) for r, c in zip(records, active, strict=True)])
    offsets = targets - np.stack([target(record.memory, 0.0) for record in records])
    requests = [concept.request for concept in active]
    source = spans.source_prompts(pipeline.tokenizer, requests)
    wanted = spans.destination_prompts(pipeline.tokenizer, requests)
    base = pipeline.params["text_encoder"]
    owner, prompt = np.nonzero(source.mask)
    rows = source.ids[owner, prompt], source.positions[owner, prompt]
    before, after = (text_states(pipeline, params, *rows, block) for params in (base, edited))
    # Many concepts may share a destination ("art"): each is read once.
    ids, which = np.unique(wanted.ids[:, 0], axis=0, return_inverse=True)
    ends = text_states(pipeline, base, ids, np.zeros(len(ids), np.int32), block).pooled[which]
    first = np.flatnonzero(prompt == 0)
    h0, h = before.state[first], after.state[first]
    asked = targets - h0
    missed = _norms((targets[owner] - h0[owner]) - (after.state - before.state))
    shares = missed / _norms(asked)[owner]
    gaps = [_norms(states.pooled[first] - ends) for states in (before, after)]
    shifts = _norms(h0 - (targets - offsets)) / _norms(offsets)
    return tuple(
        Reach(
            request.source,
            " | ".join(request.dests),
            active[i].strength,
            float(_norms(asked)[i]),
            float(shares[first[i]]),
            _cosine(h[i] - h0[i], asked[i]),
            _mean(shares[(owner == i) & (prompt > 0)]),
            float(gaps[1][i] / max(gaps[0][i], np.finfo(float).tiny)),
            float(shifts[i]),
        )
        for i, request in enumerate(requests)
    )


def neighbour_states(
    pipeline: Pipeline,
    params: Mapping[str, Any],
    names: Sequence[str],
    templates: tuple[str, ...],
    block: int,
) -> TextStates:
    """States of names in templates, mean over the templates."""
    prompts = spans.source_prompts(pipeline.tokenizer, kept_requests(names, templates))
    count, width = prompts.positions.shape
    flat = prompts.ids.reshape(count * width, -1), prompts.positions.reshape(-1)
    found = text_states(pipeline, params, *flat, block)
    return TextStates(*(part.reshape(count, width, -1).mean(1) for part in found))


def _norms(rows: Float64[np.ndarray, "row dim"]) -> Float64[np.ndarray, " row"]:
    return np.linalg.norm(rows, axis=1)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(float).tiny))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
