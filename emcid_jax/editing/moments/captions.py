"""Captions that second moments are measured over: JSONL, plain text, or TensorFlow Datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.runtime.errors import UserError

# Features that hold captions in the data sets of tfds, the likeliest first.
TFDS_FEATURES = ("caption", "captions", "text")


def read_captions(source: str, count: int, seed: int) -> list[str]:
    """`count` captions of `source`, picked by `seed`; all of them if there are no more.

    Args:
        source: a `.jsonl` file with `{"caption": ...}` per line, any other file with a caption
            per line, or `tfds:<name>` for the `train` split of that data set (its feature
            `caption`, `captions` or `text`). Blank lines and blank captions do not count.
        count: how many captions.
        seed: the same seed picks the same captions of the same source.

    Raises:
        UserError: a missing or malformed file (with its line), a data set without captions, the
            extra `tfds` not installed, no caption at all.
    """
    if count < 1:
        raise UserError(f"moments.count is {count}; give a positive number of captions")
    rng = np.random.default_rng(seed)
    if source.startswith("tfds:"):
        captions = _from_data_set(source.removeprefix("tfds:"), count, rng)
    else:
        path = Path(source)
        lines = list(_jsonl(path) if path.suffix == ".jsonl" else _text(path))
        captions = [lines[index] for index in rng.permutation(len(lines))[:count]]
    if not captions:
        raise UserError(f"moments.captions: {source} holds no caption; name another source")
    return captions


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise UserError(
            f"moments.captions is {str(path)!r}, which cannot be read ({error.strerror}); name a "
            "JSONL or text file, or tfds:<name>"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); convert it") from error


def _text(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error.msg}); one object a line"
            ) from error
        caption = record.get("caption") if isinstance(record, dict) else None
        if not isinstance(caption, str):
            raise UserError(
                f'{path}:{number}: no text in field "caption"; write {{"caption": "..."}}'
            )
        if caption.strip():
            yield caption.strip()


def _from_data_set(name: str, count: int, rng: np.random.Generator) -> list[str]:
    """Captions of randomly picked examples; only those examples are read."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"moments.captions is tfds:{name}, which needs tensorflow-datasets; "
            'pip install "emcid_jax[tfds]"'
        ) from error
    try:
        examples: Any = tfds.data_source(name, split="train")
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"moments.captions is tfds:{name}: {reason}") from error
    captions: list[str] = []
    for index in rng.permutation(len(examples)):
        captions += _captions_of(examples[int(index)], name)
        if len(captions) >= count:
            break
    return captions[:count]


def _captions_of(example: Mapping[str, Any], name: str) -> list[str]:
    for feature in TFDS_FEATURES:
        if feature in example:
            return [text for text in _strings(example[feature]) if text]
    raise UserError(
        f"moments.captions is tfds:{name}, whose features are {sorted(example)}; captions are "
        f"looked for in {TFDS_FEATURES}"
    )


def _strings(value: Any) -> Iterator[str]:
    """The texts in a feature: a string, several, or records with a `text` (as in COCO)."""
    if isinstance(value, bytes):
        yield value.decode("utf-8").strip()
    elif isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        yield from _strings(value["text"])
    else:
        for item in value:
            yield from _strings(item)
