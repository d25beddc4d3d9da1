"""Captions that say nothing of an edit, each with its image seed and, if any, its real picture."""

from __future__ import annotations

import csv
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from emcid_jax.evaluation.text_space.measure import names_any
from emcid_jax.runtime.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class RealPicture(NamedTuple):
    """What a caption really looks like."""

    name: str
    """Identifies the picture's content among stored results."""
    read: Callable[[], UInt8[np.ndarray, "height width 3"]]
    """Loads it, or draws it."""


class QualityCaption(NamedTuple):
    """One caption of a quality benchmark."""

    prompt: str
    seed: int
    """Of the image's initial noise, for both models."""
    real: RealPicture | None = None


def unrelated(captions: Sequence[QualityCaption], names: Sequence[str]) -> list[QualityCaption]:
    """Captions among whose words stands none of `names`, e.g. the sources of an edit."""
    named = names_any([caption.prompt for caption in captions], names)
    return [caption for caption, skip in zip(captions, named, strict=True) if not skip]


def sprite_captions(count: int, seed: int) -> list[QualityCaption]:
    """Captions of the sprite world by `seed`, and what `sprites.drawing` draws for each.

    Image seeds are `seed`, `seed` + 1 and so on.
    """
    from emcid_jax.sprites.captions import sample_captions
    from emcid_jax.sprites.drawing import draw

    def drawn(picture, own: int) -> np.ndarray:
        return draw(picture, np.random.default_rng(own))

    return [
        QualityCaption(
            caption.text,
            (seed + i) % 2**32,
            RealPicture(
                f"{caption.picture} by {seed + i}",
                functools.partial(drawn, caption.picture, seed + i),
            ),
        )
        for i, caption in enumerate(sample_captions(count, seed))
    ]


def captions_in_file(path: Path, count: int, real: Path | None = None) -> list[QualityCaption]:
    """The first `count` rows (0: all) of a CSV with `prompt` and `evaluation_seed`.

    Args:
        path: e.g. the published `coco_30k.csv`; other columns are ignored.
        count: rows taken.
        real: folder of real pictures; a row's `coco_id` is the number at the end of its
            picture's name (`COCO_val2014_000000203564.jpg`, `203564.png`, ...).

    Raises:
        UserError: an unreadable file, a missing column, a seed or id that is no number (with its
            line), or pictures that are not there.
    """
    pictures = _pictures(real) if real else {}
    captions, missing = [], []
    for line, row in _rows(path, ("prompt", "evaluation_seed", *(("coco_id",) if real else ()))):
        if count and len(captions) == count:
            break
        seed = _number(row, "evaluation_seed", path, line)
        picture = None
        if real:
            number = _number(row, "coco_id", path, line)
            if number in pictures:
                picture = _in_file(pictures[number])
            else:
                missing.append(number)
        captions.append(QualityCaption(row["prompt"].strip(), seed, picture))
    if missing:
        raise UserError(
            f"{real}: holds no picture of {len(missing)} of {len(captions)} captions, coco_id "
            f"{missing[0]} the first; names end in that number, as COCO_val2014_"
            f"{missing[0]:012d}.jpg"
        )
    if not captions:
        raise UserError(f"{path}: holds no caption")
    return captions


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for name in columns:
                if name not in (reader.fieldnames or ()):
                    raise UserError(
                        f"{path}: no column {name!r}; it has {', '.join(reader.fieldnames or ())}"
                    )
            for row in reader:
                if None in row.values():
                    raise UserError(f"{path}:{reader.line_num}: a row with too few fields")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV: {error}") from error


def _number(row: dict[str, str], column: str, path: Path, line: int) -> int:
    text = row[column].strip()
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise UserError(f"{path}:{line}: {column} is {text!r}; give a number from 0 to 2^32 - 1")
    return int(text)


def _pictures(folder: Path) -> dict[int, Path]:
    """Pictures of a folder by the number at the end of their names."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one of pictures named by their coco_id")
    found = {}
    for path in sorted(folder.iterdir()):
        number = re.search(r"(\d+)$", path.stem)
        if number and path.suffix.lower() in PICTURES:
            found.setdefault(int(number[1]), path)
    return found


def _in_file(path: Path) -> RealPicture:
    def read() -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: not a picture: {error}") from error

    with path.open("rb") as file:  # Stored features are found by it: size and time can lie.
        return RealPicture(hashlib.file_digest(file, "sha256").hexdigest(), read)
