"""A text encoder with all that belongs to it, as one value."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.tokenizer import Tokenizer

FIRST, SECOND = "text_encoder", "text_encoder_2"
"""Names of the encoders' parts in a model's folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """One of a model's text encoders: what an edit changes, and what reads prompts for it."""

    name: str
    """Its part of the model: FIRST or SECOND."""
    model: ClipTextModel
    params: dict[str, Any]
    """The model's parameters, without the part's name."""
    tokenizer: Tokenizer

    def repadded(self, ids: Int[np.ndarray, "*prompt token"]) -> Int[np.ndarray, "*prompt token"]:
        """Token ids of another encoder's tokenizer, padded as this one's does.

        The tokenizers of a model have one vocabulary (`load_pipeline` checks it), and differ in the
        padding behind the end token.
        """
        after = np.cumsum(ids == self.tokenizer.eos_token_id, axis=-1)
        first = np.diff(after, axis=-1, prepend=0) * (after == 1)
        return np.where((after > 0) & (first == 0), self.tokenizer.pad_token_id, ids)
