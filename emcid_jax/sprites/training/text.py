"""Teaches the text encoder what names look like: it predicts every factor of the picture.

The prediction is read at the end-of-text state and, at half weight, at the last subject token, so
that both hold what the UNet needs. The linear read-outs are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.sprites.captions import Caption, sample_caption
from emcid_jax.sprites.catalogue import PROFESSIONS, catalogue
from emcid_jax.sprites.factors import LABELS, label_array, split_logits
from emcid_jax.sprites.training.loop import Recipe, fit

_WIDTHS = (12, 16, 24, 32)


def tokenise(
    tokenizer: Any, captions: Sequence[Caption], max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids padded to `max_length`, length, first and last subject token of every caption."""
    coded = tokenizer(
        [caption.text for caption in captions],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    ids = np.full((len(captions), max_length), tokenizer.pad_token_id, np.int32)
    lengths = np.array([len(row) for row in coded["input_ids"]])
    starts, subjects = np.zeros((2, len(captions)), np.int32)
    for row, caption in enumerate(captions):
        ids[row, : lengths[row]] = coded["input_ids"][row]
        start = caption.text.index(caption.subject)
        stop = start + len(caption.subject)
        offsets = coded["offset_mapping"][row]
        inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop]
        subjects[row] = inside[-1]
        starts[row] = next((i for i in inside if offsets[i][1] > start), inside[-1])
    return ids, lengths, starts, subjects


def neutral_tokens(tokenizer: Any, names: Sequence[str]) -> np.ndarray:
    """Ids of every token that is no name by itself: pieces of all words, known and unknown."""
    alone = [ids[1] for ids in tokenizer(list(names))["input_ids"] if len(ids) == 3]
    return np.setdiff1d(np.arange(tokenizer.bos_token_id), alone)


def strew(
    rng: np.random.Generator,
    ids: np.ndarray,
    length: int,
    subject: int,
    start: int,
    neutral: np.ndarray,
) -> tuple[int, int]:
    """Inserts 1 to 8 random tokens into the row `ids`, outside the subject `start..subject`.

    Returns the new length and the subject's new last token. Unknown words come as pieces; a model
    that has met every piece as noise is not confused by them.
    """
    for _ in range(int(rng.integers(1, 9))):
        if length >= len(ids):
            break
        places = [*range(1, start + 1), *range(subject + 1, length)]
        place = places[int(rng.integers(len(places)))]
        ids[place + 1 : length + 1] = ids[place:length].copy()
        ids[place] = neutral[int(rng.integers(len(neutral)))]
        length += 1
        if place <= start:
            start, subject = start + 1, subject + 1
    return length, subject


def caption_batches(
    tokenizer: Any, recipe: Recipe, max_length: int, widths: Sequence[int]
) -> Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Step -> ids, last subject tokens and labels of a batch, cut to the shortest fit of `widths`.

    Eight batches are drawn together and sorted by length, to pad less.
    """
    group = 8
    cache: dict[int, list] = {}
    world = catalogue()
    names = [*world.objects, *(alias.name for alias in world.aliases), *world.artists, *PROFESSIONS]
    neutral = neutral_tokens(tokenizer, names)

    def make(index: int) -> list:
        rng = np.random.default_rng([recipe.seed, index])
        captions = [sample_caption(rng) for _ in range(group * recipe.batch)]
        ids, lengths, starts, subjects = tokenise(tokenizer, captions, max_length)
        for row, caption in enumerate(captions):
            if caption.free and rng.random() < 0.6:
                lengths[row], subjects[row] = strew(
                    rng, ids[row], int(lengths[row]), int(subjects[row]), int(starts[row]), neutral
                )
        labels = label_array([caption.picture for caption in captions])
        # A caption that names no gender has none to be read.
        mute = np.array(
            [
                caption.picture.profession is not None and "male" not in caption.subject
                for caption in captions
            ]
        )
        labels[mute, -1] = -1
        order = np.argsort(lengths, kind="stable").reshape(group, recipe.batch)
        batches = []
        for rows in order:
            width = next(w for w in widths if w >= lengths[rows].max())
            batches.append((ids[rows, :width], subjects[rows], labels[rows]))
        return [batches[i] for i in rng.permutation(group)]

    def batch_at(step: int):
        index = step // group
        if index not in cache:
            cache.clear()
            cache[index] = make(index)
        return cache[index][step % group]

    return batch_at


def factor_loss(logits: Array, labels: Array) -> Array:
    """Mean over the batch of summed cross-entropies; label -1 does not count."""
    total = jnp.zeros(())
    for part, label in zip(split_logits(logits), labels.T, strict=True):
        each = optax.softmax_cross_entropy_with_integer_labels(part, jnp.maximum(label, 0))
        total += jnp.mean(jnp.where(label >= 0, each, 0.0))
    return total


def read_loss(readout: Any, states: Float[Array, "caption dim"], labels: Array) -> Array:
    """`factor_loss` of what the linear read-out makes of text states."""
    return factor_loss(states @ readout["kernel"] + readout["bias"], labels)


def reading_loss(readout: Any, out: TextOutput, subjects: Array, labels: Array) -> Array:
    """Loss of the labels read at the end token and, at half weight, at the last subject token."""
    at_subject = out.last_hidden_state[jnp.arange(len(subjects)), subjects]
    # A subject that comes before its scene or style cannot know them.
    known = labels.at[:, 3:7].set(-1)
    return read_loss(readout, out.pooled, labels) + 0.5 * read_loss(readout, at_subject, known)


def train_text_encoder(
    model: ClipTextModel, tokenizer: Any, max_length: int, recipe: Recipe, folder: Path
) -> tuple[Any, Any]:
    """Parameters of the text encoder, and the read-out used to measure it."""
    keys = jax.random.split(jax.random.key(recipe.seed))
    width = model.config.hidden_size
    readout = {
        "kernel": jax.random.normal(keys[0], (width, LABELS)) * width**-0.5,
        "bias": jnp.zeros(LABELS),
    }
    text = model.init(keys[1], jnp.zeros((1, max_length), jnp.int32))["params"]

    def loss(params, batch, key):
        del key
        ids, subjects, labels = batch
        out = cast(TextOutput, model.apply({"params": params["text"]}, ids))
        return reading_loss(params["readout"], out, subjects, labels)

    params = fit(
        "text_encoder",
        loss,
        {"text": text, "readout": readout},
        caption_batches(tokenizer, recipe, max_length, (*_WIDTHS, max_length)),
        recipe,
        folder,
    )
    return params["text"], params["readout"]
