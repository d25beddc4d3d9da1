"""A text encoder with all that belongs to it, as one value."""

from __future__ import annotations

import dataclasses
from typing import Any

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
