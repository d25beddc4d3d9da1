"""Teaches the text encoder to hand names on late, as CLIP does, so that they can be edited late.

A small encoder left to itself copies a name's look into the end token within the first five of its
twelve blocks; an offset at the subject token of block 10 then comes too late. Interchange training
(Geiger et al. 2022, arXiv 2112.00826) puts another caption's subject state in the place of a
caption's own and asks the tokens behind it to read the other name, and the same context as before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.sprites.factors import FACTORS
from emcid_jax.sprites.training.loop import Batch, Recipe, fit
from emcid_jax.sprites.training.text import caption_batches, read_loss, reading_loss

BLOCK = 10
"""Block whose output is exchanged: only the last one comes after it."""
_UNKNOWN = -1
_KINDS = (slice(0, 3), slice(4, 7), slice(7, 9))
"""Factors that the name of an object, an artist and a profession decides."""


def exchange(
    labels: Int[np.ndarray, "caption factor"],
) -> tuple[
    Int[np.ndarray, " caption"],
    Int[np.ndarray, "caption factor"],
    Int[np.ndarray, "caption factor"],
]:
    """Partner of every caption, the labels after the exchange, and those that the name decides.

    Partners name things of one kind: object and object, artist and artist. Labels that the name
    does not decide are -1 in the last array.
    """
    none = [factor.size - 1 for factor in FACTORS]
    kinds = np.where(labels[:, 0] != none[0], 0, np.where(labels[:, 7] != none[7], 2, 1))
    partner = np.arange(len(labels))
    exchanged, decided = labels.copy(), np.full_like(labels, _UNKNOWN)
    for kind, factors in enumerate(_KINDS):
        rows = np.flatnonzero(kinds == kind)
        partner[rows] = np.roll(rows, 1)
        exchanged[rows, factors] = labels[partner[rows], factors]
        decided[rows, factors] = exchanged[rows, factors]
    return partner, exchanged, decided


def train_interchange(
    model: ClipTextModel,
    params: Any,
    tokenizer: Any,
    max_length: int,
    recipe: Recipe,
    folder: Path,
) -> tuple[Any, Any]:
    """`params` = (text encoder, read-out) after the training, which keeps what they could do.

    Read are the end token and, at half weight, a random token behind the subject: the UNet attends
    to all of them. The padding is trained too, hence batches of full length.
    """
    batch_of = caption_batches(tokenizer, recipe, max_length, widths=(max_length,))

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        del key
        return interchange_loss(model, params, batch, BLOCK)

    start = dict(zip(("text", "readout"), params, strict=True))
    pairs = interchange_batches(batch_of, recipe.seed, max_length)
    trained = fit("interchange", loss, start, pairs, recipe, folder)
    return trained["text"], trained["readout"]


def interchange_loss(
    model: ClipTextModel, params: Any, batch: Batch, block: int
) -> Float[Array, ""]:
    """Loss of a batch as it stands and after the exchange of states at the output of `block`.

    `params` has `text` and `readout`; `batch` is one of `interchange_batches`.
    """
    ids, subjects, labels, partner, exchanged, later, decided = batch
    text = {"params": params["text"]}
    rows = jnp.arange(len(ids))
    out = cast(TextOutput, model.apply(text, ids))
    states = cast(Array, out.hidden[block])
    foreign = states.at[rows, subjects].set(states[partner, subjects[partner]])
    after = cast(TextOutput, model.apply(text, ids, hidden=foreign, start=block + 1))
    behind = after.last_hidden_state[rows, later]
    readout = params["readout"]
    return (
        reading_loss(readout, out, subjects, labels)
        + read_loss(readout, after.pooled, exchanged)
        + 0.5 * read_loss(readout, behind, decided)
    )


def interchange_batches(
    batch_of: Callable[[int], tuple[np.ndarray, ...]], seed: int, max_length: int
) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Step -> captions, their partners' rows and a random token behind each subject.

    `batch_of(step)` gives ids of `max_length` tokens, last subject tokens and labels.
    """

    def batch_at(step: int) -> tuple[np.ndarray, ...]:
        ids, subjects, labels = batch_of(step)
        partner, exchanged, decided = exchange(labels)
        rng = np.random.default_rng([seed, step, 1])
        later = rng.integers(np.minimum(subjects + 1, max_length - 1), max_length)
        return ids, subjects, labels, partner, exchanged, later, decided

    return batch_at
