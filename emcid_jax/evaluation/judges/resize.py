"""One image of any size to the size that an evaluator takes, on the host, by Pillow."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def stretched(
    image: UInt8[np.ndarray, "height width 3"],
    size: tuple[int, int],
    resample: Image.Resampling = BICUBIC,
) -> Float32[np.ndarray, "_ _ 3"]:
    """The image at `size` (height, width), not rounded, what overshoots cut to 0 and 255.

    Antialiased and channel by channel in floating point, as clean-FID does it (arXiv 2104.11222).
    """
    if image.shape[:2] == size:
        return image.astype(np.float32)
    channels = (
        Image.fromarray(np.ascontiguousarray(image[..., i]).astype(np.float32)).resize(
            (size[1], size[0]), resample
        )
        for i in range(3)
    )
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def centred(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """CLIP's way: the shorter side becomes `size`, bicubic, in bytes; the middle is cut out."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shorter = min(height, width)
    # The longer side is cut off below the point, as in CLIP's own preprocessing.
    wanted = (size * height // shorter, size * width // shorter)
    whole = np.asarray(Image.fromarray(image).resize((wanted[1], wanted[0]), BICUBIC))
    top, left = ((side - size) // 2 for side in wanted)
    return whole[top : top + size, left : left + size]
