"""Captions that say nothing of an edit, each with its image seed and, if any, its real picture."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from emcid_jax.concepts.readers.located import number_in
from emcid_jax.concepts.readers.texts import PROMPT_COLUMNS, read_texts
from emcid_jax.evaluation.text_space.measure import names_any
from emcid_jax.runtime.errors import Failures, UserError
from emcid_jax.storage.files import open_to_read
from emcid_jax.storage.pictures import read_picture

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
    """The first `count` entries (0: all) of a file with `prompt` and `evaluation_seed`.

    Args:
        path: e.g. the published `coco_30k.csv` (kinds: `read_texts`); other columns are ignored.
        count: entries taken.
        real: folder of real pictures; a row's `coco_id` is the number at the end of its
            picture's name (`COCO_val2014_000000203564.jpg`, `203564.png`, ...).

    Raises:
        UserError: an unreadable file, a missing column, a seed or id that is no number (with its
            line), or pictures that are not there.
    """
    pictures = _pictures(real) if real else {}
    failures = Failures(path)
    captions, missing = [], []
    for entry in read_texts(path, "captions", PROMPT_COLUMNS)[: count or None]:
        seed = number_in(entry.fields, "evaluation_seed", entry.line, failures)
        picture = None
        if real:
            number = number_in(entry.fields, "coco_id", entry.line, failures)
            if number in pictures:
                picture = _in_file(pictures[number])
            else:
                missing.append(number)
        captions.append(QualityCaption(entry.text, seed, picture))
    failures.finish()
    if missing:
        raise UserError(
            f"{real}: holds no picture of {len(missing)} of {len(captions)} captions, coco_id "
            f"{missing[0]} the first; names end in that number, as COCO_val2014_"
            f"{missing[0]:012d}.jpg"
        )
    if not captions:
        raise UserError(f"{path}: holds no caption")
    return captions


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
    with open_to_read(path) as file:  # Stored features are found by it: size and time can lie.
        return RealPicture(
            hashlib.file_digest(file, "sha256").hexdigest(), functools.partial(read_picture, path)
        )
