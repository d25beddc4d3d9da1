"""What SDXL's sizes mean in the sprite world: how a training picture was blurred or cut off.

A picture of original size (s, s) was shrunk to s x s px and enlarged again. One with a crop at
(top, left) has lost that many rows and columns there; its last ones are repeated instead.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIDE = 64
SMALL = (16, 24, 32, 48)
"""Original sizes of blurred pictures."""
MOST = 24
"""Rows or columns that a crop takes at most."""
_BLURRED, _CROPPED = 0.15, 0.15
_PLAIN = (SIDE, SIDE, 0, 0, SIDE, SIDE)


def blurred(
    picture: UInt8[np.ndarray, "side side 3"], size: int
) -> UInt8[np.ndarray, "side side 3"]:
    """The picture as one of `size` x `size` px shows it."""
    small = Image.fromarray(picture).resize((size, size), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.shape[:2], Image.Resampling.BILINEAR))


def cropped(
    picture: UInt8[np.ndarray, "side side 3"], top: int, left: int
) -> UInt8[np.ndarray, "side side 3"]:
    """The picture without its first `top` rows and `left` columns."""
    return np.pad(picture[top:, left:], ((0, top), (0, left), (0, 0)), mode="edge")


def varied(
    pictures: UInt8[np.ndarray, "picture side side 3"], seed: int
) -> tuple[UInt8[np.ndarray, "picture side side 3"], Float[np.ndarray, "picture 6"]]:
    """Most pictures as they are, some blurred or cropped, and the `time_ids` that say so."""
    rng = np.random.default_rng([seed, 6])
    shown = np.array(pictures)
    sizes = np.tile(np.array(_PLAIN, np.float32), (len(shown), 1))
    for row, kind in enumerate(rng.random(len(shown))):
        if kind < _BLURRED:
            sizes[row, :2] = size = SMALL[int(rng.integers(len(SMALL)))]
            shown[row] = blurred(shown[row], size)
        elif kind < _BLURRED + _CROPPED:
            top, left = rng.integers(0, MOST + 1, size=2).tolist()
            sizes[row, 2:4] = top, left
            shown[row] = cropped(shown[row], top, left)
    return shown, sizes
