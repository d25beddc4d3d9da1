"""A byte-level CLIP tokenizer trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CORPUS = """
an image of a great white shark, a photo of an ostrich, painting by Vincent van Gogh
artwork by an artist, style of the art of stars, a starfish and a star in the text of a startled cat
the cats sat, a cart, a portrait of a doctor, the current President of the United States
A stunning image showcasing the intricate details of a bird, Gustave Doré and Zdzisław Beksiński
"""


def write_clip_tokenizer(folder: Path, length: int, pad: str = "<|endoftext|>") -> None:
    """Trains merges on the corpus and writes vocab.json, merges.txt and the config as CLIP's.

    As in CLIP, every byte is a token both inside and at the end of a word: nothing is unknown.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(CORPUS.splitlines() * 3, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    names = [*alphabet, *(byte + "</w>" for byte in alphabet), *map("".join, merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"model_max_length": length, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer with CLIP's 77 tokens, padded with the end token as in Stable Diffusion 1."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_clip_tokenizer(folder, 77)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def short_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with 12 tokens and the pad token "!" of Stable Diffusion 2."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("short_tokenizer")
    write_clip_tokenizer(folder, 12, pad="!")
    return CLIPTokenizer.from_pretrained(folder)
