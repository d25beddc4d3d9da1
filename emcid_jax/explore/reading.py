"""What an edit does to a prompt, token by token, and which concepts of the bank do it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.editing.diagnostics.token_shares import gate_shares, written_shares
from emcid_jax.explore.session import Edited, Session
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.generate import encode_prompts
from emcid_jax.runtime.errors import UserError

LEAST = 0.1
"""Share of an edit from which on it counts as touched."""
MOST = 12
"""Touched concepts that are told."""


class Touched(NamedTuple):
    """A concept that answers somewhere in a prompt."""

    concept: int
    """Its place in the bank."""
    shares: tuple[float, ...]
    """How much of its offset is written at each token."""


class Reading(NamedTuple):
    """A prompt, read by the base and by the edited model.

    Tokens are all but the start token, which no edit changes. Padding counts as one, by its
    largest value.
    """

    tokens: tuple[str, ...]
    """As the user wrote them, then `end` and, where there is some, `padding`."""
    changes: tuple[float, ...]
    """|s' - s| / |s| of each, s what the denoiser reads of it."""
    touched: tuple[Touched, ...]
    """The concepts that answer most come first."""


def read(session: Session, edited: Edited, prompt: str) -> Reading:
    """Compares the text states of a prompt. UserError if the models cannot read all of it."""
    texts = token_texts(session.pipeline.encoder, prompt)
    base, other = (
        encode_prompts(pipeline, [prompt]).tokens[0].astype(np.float64)
        for pipeline in (session.pipeline, edited.pipeline)
    )
    change = np.linalg.norm(other - base, axis=1) / np.linalg.norm(base, axis=1)
    size = len(texts)
    padding = ("padding",) if 1 + size < len(change) else ()
    shares = _told(_shares(session, edited, prompt), size).T
    touched = [
        Touched(concept, tuple(own.tolist()))
        for concept, own in zip(edited.active, shares, strict=True)
        if own.max() >= LEAST
    ]
    touched.sort(key=lambda one: -max(one.shares))
    changes = _told(change[:, None], size)[:, 0].tolist()
    return Reading((*texts, *padding), tuple(changes), tuple(touched[:MOST]))


def token_texts(encoder: TextEncoder, prompt: str) -> tuple[str, ...]:
    """The prompt's tokens, and the end token. UserError if there are more than the model reads."""
    most = encoder.tokenizer.model_max_length
    (places,) = encoder.tokenizer([prompt], return_offsets_mapping=True)["offset_mapping"]
    if len(places) > most:
        raise UserError(
            f"prompt has {len(places)} tokens, but the model reads {most}, start and end among "
            "them; shorten it"
        )
    return (*(prompt[begin:end] for begin, end in places[1:-1]), "end")


def _told(rows: Float[np.ndarray, "token column"], size: int) -> Float[np.ndarray, "told column"]:
    """Of all tokens but the start token: the first `size`, and the most of those behind them."""
    own, behind = rows[1 : 1 + size], rows[1 + size :]
    return np.concatenate([own, behind.max(axis=0, keepdims=True)]) if len(behind) else own


def _shares(session: Session, edited: Edited, prompt: str) -> Float64[np.ndarray, "token concept"]:
    """The share of every active concept at every token; of two encoders the larger."""
    found = []
    for encoder in session.pipeline.encoders:
        if encoder.name not in edited.edit:
            continue
        ids, units = tokenize(encoder.tokenizer, [prompt])[0], edited.edit[encoder.name].units
        told = edited.edit[encoder.name].report.units
        if units is None or told is None:
            found.append(written_shares(encoder, edited.writers[encoder.name], ids))
        else:
            shares = gate_shares(encoder, units, told.gates, ids)
            found.append(shares[:, list(edited.active)].astype(np.float64))
    if not found:
        ids = tokenize(session.pipeline.encoder.tokenizer, [prompt])[0]
        return np.zeros((len(ids), 0))
    return np.maximum.reduce(found)
