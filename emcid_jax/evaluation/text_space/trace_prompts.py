"""Prompts about names for causal tracing, and their corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from emcid_jax.concepts import spans
from emcid_jax.concepts.templates import fill
from emcid_jax.models.text.clip import end_positions
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.runtime.errors import UserError


class Subjects(NamedTuple):
    """Names in templates, as tokens cut behind the longest prompt's end token."""

    names: tuple[str, ...]
    ids: Int[np.ndarray, "name template token"]
    starts: Int[np.ndarray, "name template"]
    """First subject token."""
    ends: Int[np.ndarray, "name template"]
    """One past the last subject token."""


def read_subjects(encoder: TextEncoder, names: Sequence[str], templates: Sequence[str]) -> Subjects:
    """Every name in every template. UserError for one that has no place in a prompt."""
    tokenizer = encoder.tokenizer
    filled = [[fill(template, name) for template in templates] for name in names]
    ids = tokenize(tokenizer, [one.prompt for row in filled for one in row])
    last = int(end_positions(jnp.asarray(ids), encoder.model.config.eos_token_id).max())
    places = np.array(
        [
            [spans.subject_span(tokenizer, one.prompt, name, one.start) for one in row]
            for name, row in zip(names, filled, strict=True)
        ]
    )
    cut = ids[:, : last + 1].astype(np.int32).reshape(len(names), len(templates), -1)
    return Subjects(tuple(names), cut, places[..., 0], places[..., 1])


def with_partners(
    subjects: Subjects, seed: int
) -> tuple[Subjects, Int[np.ndarray, "name template token"]]:
    """The names that have another one of as many tokens, and the prompts about those.

    A random cycle through the names of each length: everyone is taken once. UserError if there are
    no two of one length.
    """
    lengths = [tuple(row) for row in (subjects.ends - subjects.starts).tolist()]
    partner, rng = np.full(len(lengths), -1), np.random.default_rng(seed)
    for length in dict.fromkeys(lengths):
        alike = rng.permutation([i for i, one in enumerate(lengths) if one == length])
        if len(alike) > 1:
            partner[alike] = np.roll(alike, 1)
    kept = np.flatnonzero(partner >= 0)
    if not kept.size:
        raise UserError(
            "config.corruption is 'swap', but no two names have equally many tokens; give more "
            "names or set it to 'noise'"
        )
    names = tuple(subjects.names[i] for i in kept)
    mine = Subjects(names, subjects.ids[kept], subjects.starts[kept], subjects.ends[kept])
    return mine, subjects.ids[partner[kept]]


def with_noise(
    hidden: Float[np.ndarray, "name template token dim"],
    subjects: Subjects,
    params: Mapping[str, Any],
    scale: float,
    seed: int,
) -> Float[np.ndarray, "name template token dim"]:
    """Normal noise added at all subject tokens, the same in every template of a name.

    Args:
        hidden: input of the text encoder's block 0.
        subjects: what it is of.
        params: of the text encoder.
        scale: size, in standard deviations of the subjects' token embeddings.
        seed: of the noise.
    """
    place = np.arange(hidden.shape[2])
    inside = (place >= subjects.starts[..., None]) & (place < subjects.ends[..., None])
    table = np.asarray(params["text_model"]["embeddings"]["token_embedding"]["embedding"])
    size = scale * table[subjects.ids[inside]].std()
    noise = np.random.default_rng(seed).standard_normal((len(hidden), *hidden.shape[2:]))
    number = np.maximum(place - subjects.starts[..., None], 0)  # Of the token within its name.
    offset = np.take_along_axis(noise[:, None], number[..., None], axis=2)
    return (hidden + size * offset * inside[..., None]).astype(hidden.dtype)
