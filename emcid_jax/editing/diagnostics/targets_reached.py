"""How far an edit brings its own concepts, in text space: states at block L before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.bank.solve import target
from emcid_jax.editing.encoder.sites import Site, by_site
from emcid_jax.editing.encoder.whole_prompts import Prompts, TextChange, text_changes
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.runtime.errors import UserError


class Reach(NamedTuple):
    """One concept; z is its target, h0 and h its state before and after, at prompt 0's subject."""

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
    """The same as `left` for its other prompts, whose target is z - h0 too: mean; None without."""
    gap: float
    """How far the prompt's final features at the end token are from the destination's, after the
    edit over before: 0 is the same."""
    shift: float
    """|h0 - h*| / |z - h*|, h* the state that Stage I started from: 0 on the model of the
    memories, and how much of the offset another model has moved on its own."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Targets of a bank's concepts of strength > 0, and the prompts that they are measured on."""

    requests: tuple[EditRequest, ...]
    strengths: tuple[float, ...]
    block: int
    targets: Float64[np.ndarray, "request dim"]
    offsets: Float64[np.ndarray, "request dim"]
    """Target less the state that Stage I started from."""
    owner: Int[np.ndarray, " prompt"]
    """Request of every source prompt."""
    first: Bool[np.ndarray, " prompt"]
    """Whether it is its request's prompt 0."""
    source: Prompts
    destination: Prompts
    """Each once, for many concepts may share one ("art")."""
    wanted: Int[np.ndarray, " request"]
    """Which of these is a request's."""


def question(concepts: ConceptBank, encoder: TextEncoder, where: Sequence[Site]) -> Question:
    """The prompts to run, whatever the edit.

    `where` are the sites of the memories.

    Raises:
        UserError: no concept, memories of another width or several blocks, prompts that do not fit.
    """
    active = concepts.active
    if not active:
        raise UserError("the bank has no concept of strength > 0; add one")
    records = [concepts.records[concept.memory] for concept in active]
    strengths = tuple(concept.strength for concept in active)
    (block,) = (site.layer for site in where if site.encoder == encoder.name)

    def states(factors: Sequence[float]) -> np.ndarray:
        """At the subject's token, the first of those that are edited."""
        wanted = (target(r.memory, s) for r, s in zip(records, factors, strict=True))
        return np.stack([by_site(z, tuple(where))[encoder.name][0] for z in wanted])

    targets, starts = states(strengths), states([0.0] * len(records))
    offsets = targets - starts
    requests = tuple(concept.request for concept in active)
    source = spans.source_prompts(encoder.tokenizer, requests)
    owner, prompt = np.nonzero(source.mask)
    destinations = spans.destination_prompts(encoder.tokenizer, requests).ids[:, 0]
    ids, wanted = np.unique(destinations, axis=0, return_inverse=True)
    return Question(
        requests,
        strengths,
        block,
        targets,
        offsets,
        owner,
        prompt == 0,
        Prompts(source.ids[owner, prompt], source.positions[owner, prompt]),
        Prompts.whole(ids),
        wanted,
    )


def reach(
    concepts: ConceptBank, encoder: TextEncoder, where: Sequence[Site], edited: Mapping[str, Any]
) -> tuple[Reach, ...]:
    """Every concept of strength > 0, in the bank's order.

    Args:
        concepts: the bank; its memories may be of a relative of the model.
        encoder: the pristine text encoder.
        where: sites of the memories.
        edited: its parameters with the edit in them.

    Raises:
        UserError: what `question` raises.
    """
    asked = question(concepts, encoder, where)
    sets = asked.source, asked.destination
    return answer(asked, *text_changes(encoder, encoder.params, edited, sets, asked.block))


def answer(asked: Question, source: TextChange, destination: TextChange) -> tuple[Reach, ...]:
    """How far the concepts get, from what an edit does to the prompts."""
    owner, first = asked.owner, np.flatnonzero(asked.first)
    h0, h = source.before.state[first], source.after.state[first]
    offsets = asked.targets - h0
    sizes = _norms(offsets)
    missed = _norms(offsets[owner] - (source.after.state - source.before.state))
    shares = missed / sizes[owner]
    ends = destination.before.pooled[asked.wanted]
    gaps = [_norms(states.pooled[first] - ends) for states in source[:2]]
    shifts = _norms(h0 - (asked.targets - asked.offsets)) / _norms(asked.offsets)
    return tuple(
        Reach(
            request.source,
            " | ".join(request.dests),
            asked.strengths[i],
            float(sizes[i]),
            float(shares[first[i]]),
            _cosine(h[i] - h0[i], offsets[i]),
            _mean(shares[(owner == i) & ~asked.first]),
            float(gaps[1][i] / max(gaps[0][i], np.finfo(float).tiny)),
            float(shifts[i]),
        )
        for i, request in enumerate(asked.requests)
    )


def _norms(rows: Float64[np.ndarray, "row dim"]) -> Float64[np.ndarray, " row"]:
    return np.linalg.norm(rows, axis=1)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(float).tiny))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
