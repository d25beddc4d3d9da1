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
    name: str, pool: Sequence[str], lengths: Int[np.ndarray, " template"], room: int, count: int
) -> tuple[str, ...]:
    """`count` of the pool's templates, of at most `room` tokens: the name alone decides which."""
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    order = rng.permutation(len(pool))
    return tuple(pool[int(i)] for i in order[lengths[order] <= room][:count])


def name_prompts(
    tokenizer: Any,
    names: Sequence[str],
    templates: Sequence[Sequence[str]],
    pool: Sequence[str],
    count: int,
    origins: Sequence[str],
) -> NamePrompts:
    """Every name in its own templates and in `count` beginnings of `pool`.

    Args:
        tokenizer: the model's.
        names: what fills the slots.
        templates: of each name.
        pool: see `beginnings`.
        count: beginnings per name.
        origins: where each name was read, for messages.

    Raises:
        UserError: a name that does not fit, with its origin.
    """
    before = _lengths(tokenizer, [one.replace(SLOT, "") for one in pool])
    rooms = tokenizer.model_max_length - _lengths(tokenizer, names) + 2
    asked = [
        EditRequest(
            name, "", (*own, *chosen(name, pool, before, int(room), count)), "erase", origin=origin
        )
        for name, own, room, origin in zip(names, templates, rooms, origins, strict=True)
    ]
    return NamePrompts(*source_prompts(tokenizer, asked))


def _lengths(tokenizer: Any, texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Tokens of each text, start and end token among them."""
    return np.array([len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]])
