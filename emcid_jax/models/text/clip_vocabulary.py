"""CLIP's own tokenizer, bundled: single-file checkpoints bring none, and need no network for it."""

from __future__ import annotations

import gzip
from importlib import resources
from typing import Any, cast

from emcid_jax.models.text.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens of a prompt, the start and the end token among them."""


def clip_tokenizer(pad_token: str = END) -> Tokenizer:
    """The tokenizer of `openai/clip-vit-large-patch14`: 49,408 tokens, 77 of them a prompt.

    Its vocabulary is, in this order: every byte inside a word, every byte that ends one, what each
    merge makes, and the two special tokens.

    Args:
        pad_token: what fills up a prompt: the end token in Stable Diffusion 1.x, `!` in 2.x.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer  # a second to import

    packed = resources.files("emcid_jax.models.text") / "vocabulary" / "merges.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines]  # transformers says list[str].
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=pad_token
    )
    return cast(Tokenizer, tokenizer)
