"""Pictures as the bytes of PNG files."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The image as a PNG file's bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def compact(content: bytes) -> bytes:
    """A figure's PNG in 256 colours at most: a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        few = image.convert("RGB").quantize(256, kmeans=8, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
