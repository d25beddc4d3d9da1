"""Captions for the second moments: the sprite world's, a file's, or a TFDS dataset's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.config import MomentConfig
from emcid_jax.errors import UserError

FIELDS = ("caption", "text", "captions", "prompt")
"""Names under which a JSONL line or a TFDS example may hold its caption, in this order."""


def read_captions(config: MomentConfig) -> list[str]:
    """`config.count` captions picked by `config.seed`, or all where there are fewer.

    UserError names the file and line, or the dataset, that gives no caption.
    """
    if config.captions == "sprites":
        from emcid_jax.sprites.captions import sample_captions

        return [caption.text for caption in sample_captions(config.count, config.seed)]
    if config.captions.startswith("tfds:"):
        return _from_tfds(config.captions.removeprefix("tfds:"), config)
    captions = _from_file(Path(config.captions))
    return [captions[index] for index in _picked(len(captions), config)]


def require_captions(config: MomentConfig) -> None:
    """UserError if the captions cannot be read; cheap enough to ask before any other work."""
    if config.captions != "sprites" and not config.captions.startswith("tfds:"):
        _from_file(Path(config.captions))


def _picked(available: int, config: MomentConfig) -> list[int]:
    """Indices of the captions to take, ascending."""
    if available <= config.count:
        return list(range(available))
    rng = np.random.default_rng(config.seed)
    return sorted(rng.choice(available, config.count, replace=False).tolist())


def _from_file(path: Path) -> list[str]:
    """One caption a line: plain text, or JSON (a string, or an object with one of `FIELDS`)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.moments.captions is {str(path)!r}: {error}") from error
    is_json = path.suffix in (".jsonl", ".json")
    captions = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            captions.append(_from_json(line, f"{path}:{number}") if is_json else line.strip())
    if not captions:
        raise UserError(f"config.moments.captions is {str(path)!r}, which holds no caption")
    return captions


def _from_json(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); write one JSON value a line") from error
    caption = record if isinstance(record, str) else _caption(record)
    if caption is None:
        raise UserError(f"{where}: no caption; name it {' or '.join(map(repr, FIELDS))}")
    return caption


def _caption(record: Any) -> str | None:
    """The caption in one example: under the first of `FIELDS`, the first of several."""
    if not isinstance(record, Mapping):
        return None
    value = next((record[name] for name in FIELDS if name in record), None)
    if isinstance(value, Mapping):  # e.g. coco_captions: captions/text
        return _caption(value)
    if isinstance(value, list | tuple | np.ndarray) and len(value):
        value = value[0]
    if isinstance(value, Mapping):
        return _caption(value)
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else None


def _from_tfds(name: str, config: MomentConfig) -> list[str]:
    """Captions of a prepared dataset `name` or `name/config:version`, optionally `@split`."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        message = "config.moments.captions needs TFDS; pip install 'emcid_jax[tfds]'"
        raise UserError(message) from error
    dataset, _, split = name.partition("@")
    try:
        source: Any = tfds.data_source(dataset, split=split or "train", download=False)
    except Exception as error:  # TFDS raises a dozen unrelated types for a name it cannot serve.
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"config.moments.captions is 'tfds:{name}': {reason}") from error
    captions = []
    for index in _picked(len(source), config):
        caption = _caption(source[index])
        if caption is None:
            raise UserError(
                f"config.moments.captions is 'tfds:{name}': example {index} has none of the "
                f"fields {', '.join(FIELDS)}"
            )
        captions.append(caption)
    return captions
