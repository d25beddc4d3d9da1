"""The tokens of a prompt that offsets are added to: the subject's last one, and more if set so.

The second is the end token, further ones are the padding behind it, as in the released code's
later version (docs/stage_one.md). All of them come after the subject and so depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.editing.encoder.blockwise import SourcePrompts


def positions(
    prompts: PromptRectangle, end: int, count: int
) -> Int[np.ndarray, "concept prompt edited"]:
    """The first `count` edited tokens of every prompt; `end` is the id of the end token."""
    ends = (prompts.ids == end).argmax(axis=-1)
    behind = ends[..., None] + np.arange(count - 1)
    return np.concatenate([prompts.positions[..., None], behind], -1).astype(np.int32)


def last_read(prompts: PromptRectangle, end: int, count: int) -> Int[np.ndarray, "concept prompt"]:
    """Last token of every prompt that the text loss reads: the end token, or edited padding."""
    return positions(prompts, end, max(count, 2)).max(axis=-1)


def rows(prompts: PromptRectangle, end: int, counts: Sequence[int]) -> SourcePrompts:
    """What Stage II writes: every request as often as it has edited tokens, each time another."""
    places = positions(prompts, end, max(counts))
    owner = np.repeat(np.arange(len(counts)), counts)
    token = np.concatenate([np.arange(count) for count in counts])
    return SourcePrompts(prompts.ids[owner], places[owner, :, token], prompts.mask[owner])
