"""Strangers: other words that end like a name, in the name's own contexts.

What stands last decides most of a token's state in the low blocks, and captions show too few of the
words that end in a piece: the gate of "grunter" is to stay shut at "character".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from emcid_jax.editing.units.contexts import NamePrompts

END_OF_WORD = "</w>"
"""With what the tokenizer marks tokens that end a word."""


def strangers(
    tokenizer: Any, names: Sequence[str], prompts: NamePrompts, draw: int, every: bool = False
) -> tuple[NamePrompts, Bool[np.ndarray, "name context"]]:
    """The names' prompts with other tokens in the place of all of the name's but the last.

    Only of names that end in a piece of a word, which other words may end in too, or of `every`
    name of several tokens; others keep their prompts. A token that ends a word is replaced by one
    that does, any other by any other; the name and `draw` alone decide which.

    Args:
        tokenizer: the model's.
        names: what the prompts are about.
        prompts: see `contexts.name_prompts`.
        draw: number of the draw, that there may be several.
        every: whether names that end in a whole word have strangers too.

    Returns:
        The prompts, and which of them are strangers.
    """
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ends = np.array([piece.endswith(END_OF_WORD) for piece in pieces])
    plain = np.array([i not in special for i in range(len(pieces))])
    pools = np.flatnonzero(~ends & plain), np.flatnonzero(ends & plain)
    ids = prompts.ids.copy()
    lengths = [len(one) for one in tokenizer(list(names), add_special_tokens=False)["input_ids"]]
    for row, (name, length) in enumerate(zip(names, lengths, strict=True)):
        digest = hashlib.sha256(f"{draw} {name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        for context, last in zip(ids[row], prompts.positions[row].tolist(), strict=True):
            if length > 1 and (every or not ends[context[last - 1]]):
                for place in range(last - length + 1, last):
                    context[place] = rng.choice(pools[int(ends[context[place]])])
    return prompts._replace(ids=ids), prompts.mask & (ids != prompts.ids).any(axis=2)
