"""What a gate is fitted on: a name in its templates and behind beginnings of captions.

Attention is causal: of a sentence only what stands before the name reaches the name's last token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import source_prompts
from emcid_jax.concepts.templates import SLOT

WORDS = 12
"""Most words of a beginning."""


class NamePrompts(NamedTuple):
    """Names in context, cut behind the name."""

    ids: Int[np.ndarray, "name context token"]
    """Token ids."""
    positions: Int[np.ndarray, "name context"]
    """Last token of the name."""
    mask: Bool[np.ndarray, "name context"]
    """False where a name has fewer contexts than another."""


def beginnings(captions: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """`count` beginnings of captions as templates, 0 to `WORDS` words before the slot.

    They are the same for the same captions and seed.
    """
    rng = np.random.default_rng(seed)
    found = []
    for index in rng.integers(len(captions), size=count):
        words = captions[int(index)].replace(SLOT, "").split()
        kept = int(rng.integers(min(len(words), WORDS + 1)))
        found.append(" ".join([*words[:kept], SLOT]))
    return tuple(found)


def chosen(
    name: str, lengths: Int[np.ndarray, " beginning"], room: int, count: int
) -> Int[np.ndarray, " chosen"]:
    """Up to `count` beginnings of at most `room` tokens: the name alone decides which."""
    digest = hashlib.sha256(name.encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(len(lengths))
    return order[lengths[order] <= room][:count]


def name_prompts(
    tokenizer: Any,
    names: Sequence[str],
    templates: Sequence[Sequence[str]],
    pool: Sequence[str],
    count: int,
    origins: Sequence[str],
) -> NamePrompts:
    """Every name in its own templates and in `count` beginnings of `pool`.

    A beginning ends with a space, where the tokenizer splits words: its tokens and the name's are
    those of both together, and are found once.

    Args:
        tokenizer: the model's.
        names: what fills the slots.
        templates: of each name; none has any, or all have some.
        pool: see `beginnings`.
        count: beginnings per name.
        origins: where each name was read, for messages.

    Raises:
        UserError: a name that does not fit, with its origin.
    """
    length, end = tokenizer.model_max_length, tokenizer.eos_token_id
    shape = len(names), count if pool else 0
    found = NamePrompts(
        np.full((*shape, length), tokenizer.pad_token_id, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
    )
    if any(templates):
        asked = [
            EditRequest(name, "", tuple(own), "erase", origin=origin)
            for name, own, origin in zip(names, templates, origins, strict=True)
        ]
        own = source_prompts(tokenizer, asked)
        parts = zip(own, found, strict=True)
        found = NamePrompts(*(np.concatenate(both, axis=1) for both in parts))
    if not pool:
        return found
    said = tokenizer([one.removesuffix(SLOT) for one in pool], verbose=False)["input_ids"]
    starts = [ids[:-1] for ids in said]
    lengths = np.array([len(ids) for ids in starts])
    spoken = tokenizer(list(names), add_special_tokens=False, verbose=False)["input_ids"]
    first = found.mask.shape[1] - count
    for row, (name, tokens) in enumerate(zip(names, spoken, strict=True)):
        places = chosen(name, lengths, length - 1 - len(tokens), count).tolist()
        for column, place in enumerate(places, first):
            prompt = [*starts[place], *tokens, end]
            found.ids[row, column, : len(prompt)] = prompt
            found.positions[row, column] = len(prompt) - 2
            found.mask[row, column] = True
    return found
