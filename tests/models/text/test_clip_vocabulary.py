"""CLIP's own tokenizer: its published ids, and where names stand in prompts made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import emcid_jax
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import source_prompts
from emcid_jax.models.text.clip_vocabulary import clip_tokenizer

CLASSES = Path(emcid_jax.__file__).parent / "sprites" / "data" / "objects.jsonl"
TEMPLATES = (
    "{}",
    "a photo of {}",
    "an image of a {}, in the snow",
    "Painting by {}: oil on canvas",
    "{} and a dog",
    "art in the style of {}",
    "the {} of 1978",
    "What a {} it was",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return clip_tokenizer()


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Stanisław Szukalski, 1978!",
         [37711, 40419, 5557, 13438, 2294, 526, 3428, 267, 272, 280, 278, 279, 256]),
        ("naïve café — déjà vu", [1097, 35689, 563, 15304, 2005, 25466, 73, 21259, 13230]),
        ("it's 50% 😀", [585, 568, 276, 271, 260, 7334]),
        ("  Two   spaces\tand\nlines", [1237, 9006, 537, 3418]),
        ("", []),
    ],
)  # fmt: skip
def test_ids_are_those_of_openai_s_own_tokenizer(
    prompt: str, ids: list[int], tokenizer: Any
) -> None:
    """Printed by `SimpleTokenizer` of open_clip 3.3.0, which is OpenAI's."""
    assert tokenizer(prompt)["input_ids"] == [49406, *ids, 49407]


def test_size_and_padding(tokenizer: Any) -> None:
    assert len(tokenizer) == 49408
    for pad, wanted in (("<|endoftext|>", 49407), ("!", 0)):
        filled = clip_tokenizer(pad)(["dog"], padding="max_length", truncation=True)["input_ids"]
        assert filled == [[49406, 1929, 49407] + [wanted] * 74]


def names(benchmarks: Path) -> list[str]:
    """All names of the ImageNet classes, and artists of the benchmark's longest list."""
    lines = CLASSES.read_text().splitlines()
    objects = [name for line in lines for name in json.loads(line)["names"]]
    lists = (json.loads(file.read_text()) for file in (benchmarks / "artists/info").glob("*.txt"))
    return [*objects, *max(lists, key=len)]


def test_a_name_ends_where_the_beginning_of_its_prompt_does(
    benchmark_files: Path, tokenizer: Any
) -> None:
    """Of every name in eight templates; the oracle encodes the prompt up to the name's end."""
    every = names(benchmark_files)
    assert len(every) > 1890
    prompts = source_prompts(tokenizer, [EditRequest(name, "dog", TEMPLATES) for name in every])
    beginnings = [template.partition("{}")[0] + name for name in every for template in TEMPLATES]
    wanted = [len(ids) - 2 for ids in tokenizer(beginnings)["input_ids"]]
    found = prompts.positions.ravel().tolist()
    wrong = [text for text, a, b in zip(beginnings, found, wanted, strict=True) if a != b]
    assert wrong == []
