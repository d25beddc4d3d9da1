"""The CLIP tokenizer of a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import Range, convert


@runtime_checkable
class Tokenizer(Protocol):
    """The part of `transformers.CLIPTokenizer` that is used here."""

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    backend_tokenizer: Any

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Token ids (and offsets, if asked for) of each text."""
        ...

    def save_pretrained(self, save_directory: str) -> Any:
        """Writes `tokenizer.json` and `tokenizer_config.json`."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads a tokenizer folder: `vocab.json` and `merges.txt`, or `tokenizer.json`.

    Raises:
        UserError: the folder or its files are missing, or they are not a CLIP tokenizer.
    """
    pair = folder / "vocab.json", folder / "merges.txt"
    if not (folder / "tokenizer.json").is_file() and not all(path.is_file() for path in pair):
        raise UserError(f"{folder}: no tokenizer here; it needs vocab.json and merges.txt")
    from transformers import CLIPTokenizer  # a second to import

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever the Rust parser makes of a damaged file
        raise UserError(f"{folder}: not a CLIP tokenizer: {error}") from error
    file, longest = folder / "tokenizer_config.json", tokenizer.model_max_length
    if isinstance(longest, int) and longest > 1_000_000:  # transformers' word for "not said"
        raise UserError(f"{folder}: set model_max_length in tokenizer_config.json (CLIP has 77)")
    convert(longest, Annotated[int, Range(3, 4096)], f"{file}: model_max_length")
    vocabulary = tokenizer.get_vocab()
    for field in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, field) not in vocabulary:  # An id it has all the same: `unk_token`'s.
            raise UserError(f"{file}: {field} is no token of the vocabulary")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes all files that any reader looks for: transformers 5's and the original CLIP pair."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    tokenizer.backend_tokenizer.model.save(str(folder))


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> Int[np.ndarray, "prompt token"]:
    """Token ids with start and end token, padded and cut to the tokenizer's `model_max_length`."""
    if not prompts:  # transformers fails on an empty list
        return np.zeros((0, tokenizer.model_max_length), np.int32)
    encoded = tokenizer(list(prompts), padding="max_length", truncation=True)
    return np.asarray(encoded["input_ids"], np.int32)
