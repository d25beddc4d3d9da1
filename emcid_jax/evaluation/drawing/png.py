"""Pictures as the bytes of PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from emcid_jax.storage.files import open_to_read

NOTE = "emcid_jax"
"""Keyword of the text in a PNG file by which this program knows its own, and how it was drawn."""


def png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True, pnginfo=with_note())
    return buffer.getvalue()


def with_note(note: str = "") -> PngInfo:
    """What a PNG file of this program says about itself."""
    about = PngInfo()
    about.add_itxt(NOTE, note)
    return about


def read_note(path: Path) -> str | None:
    """The note in a PNG file; None if there is no intact file or it has none."""
    try:
        with open_to_read(path) as file, Image.open(file) as image:
            image.load()
            return image.info.get(NOTE)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        return None


def remove_own(folder: Path, pattern: str) -> None:
    """Deletes those PNG files of the pattern in `folder` that this program wrote."""
    for path in folder.glob(pattern):
        if read_note(path) is not None:
            path.unlink()


def compact(content: bytes) -> bytes:
    """A figure's PNG in 256 colours at most: a third of the size."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        few = image.convert("RGB").quantize(256, kmeans=8, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
