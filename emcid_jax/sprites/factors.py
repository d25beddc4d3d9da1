"""A picture as a row of labels, one per factor: what encoders are taught and judges read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from emcid_jax.sprites.catalogue import (
    COLOURS,
    FRAMES,
    GENDERS,
    PALETTES,
    PROFESSIONS,
    SCENES,
    SHAPES,
    STROKES,
    TEXTURES,
    Picture,
)


class Factor(NamedTuple):
    """A name, its number of values, and how many further labels mean `art` or `none`."""

    name: str
    values: int
    extra: int

    @property
    def size(self) -> int:
        """Number of labels."""
        return self.values + self.extra


FACTORS = (
    Factor("shape", len(SHAPES), 1),
    Factor("colour", len(COLOURS), 1),
    Factor("texture", len(TEXTURES), 1),
    Factor("scene", len(SCENES), 1),
    Factor("palette", len(PALETTES), 2),
    Factor("stroke", len(STROKES), 2),
    Factor("frame", len(FRAMES), 2),
    Factor("profession", len(PROFESSIONS), 1),
    Factor("gender", len(GENDERS), 1),
)
LABELS = sum(factor.size for factor in FACTORS)


def labels_of(picture: Picture) -> tuple[int, ...]:
    """Label per factor; the last is `none`, a style's last but one is `art`."""
    look = picture.look or (-1, -1, -1)
    scene = -1 if picture.style is not None else picture.scene
    style = (
        (-1, -1, -1) if picture.style is None else tuple(v if v >= 0 else -2 for v in picture.style)
    )
    profession = -1 if picture.profession is None else picture.profession
    gender = -1 if picture.gender is None else picture.gender
    raw = (*look, scene, *style, profession, gender)
    return tuple(v if v >= 0 else factor.size + v for v, factor in zip(raw, FACTORS, strict=True))


def label_array(pictures: Sequence[Picture]) -> Int[np.ndarray, "picture factor"]:
    """Labels of many pictures."""
    return np.array([labels_of(picture) for picture in pictures], np.int32)


def split_logits(logits: Float[np.ndarray | Array, "picture label"]) -> list:
    """Logits cut into one array per factor, in the order of FACTORS."""
    stops = np.cumsum([factor.size for factor in FACTORS])[:-1].tolist()
    parts, start = [], 0
    for stop in [*stops, LABELS]:
        parts.append(logits[:, start:stop])
        start = stop
    return parts
