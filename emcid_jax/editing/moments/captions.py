"""Captions that second moments are measured over: a file of them, or TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emcid_jax.concepts.readers.texts import CAPTION_COLUMNS, read_texts
from emcid_jax.runtime.errors import UserError, first_line

# Features that hold captions in the data sets of tfds, the likeliest first.
TFDS_FEATURES = ("caption", "captions", "text")


def read_captions(source: str, count: int, seed: int) -> list[str]:
    """`count` captions of `source`, picked by `seed`; all of them if there are no more.

    Args:
        source: a file (`read_texts`: JSON, JSON lines or CSV with `caption` or `prompt`, COCO's
            captions, or a caption a line), or `tfds:<name>` for the `train` split of that data set
            (its feature `caption`, `captions` or `text`). Blank captions do not count.
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
        texts = [one.text for one in read_texts(source, "moments.captions", CAPTION_COLUMNS)]
        captions = [texts[index] for index in rng.permutation(len(texts))[:count]]
    if not captions:
        raise UserError(f"moments.captions: {source} holds no caption; name another source")
    return captions


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
        raise UserError(f"moments.captions is tfds:{name}: {first_line(error)}") from error
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
