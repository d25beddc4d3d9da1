"""Draw images once each, judge them, and keep the judge's word on disk so that a kill loses little.

An image is named by its prompt and seed. Results are stored in chunks whose file name carries the
fingerprint of everything else that decides them (model, judge, sampler settings): a run with other
settings never reads them, a run with more requests draws only what is new.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from emcid_jax.runtime.files import write_atomically

Generate = Callable[[list[str], list[int]], np.ndarray]
"""Prompts and seeds to uint8 images (image, height, width, 3)."""
Classify = Callable[[np.ndarray], np.ndarray]
"""Images to probabilities (image, label)."""


class Draw(NamedTuple):
    """One image: what is asked and the seed of its initial noise."""

    prompt: str
    seed: int

    @property
    def key(self) -> str:
        """Name of this image in stored results (32 hex digits)."""
        return hashlib.sha256(f"{self.seed}\n{self.prompt}".encode()).hexdigest()[:32]


def fingerprint(*parts: object) -> str:
    """SHA-256 (hex) of the parts' text: what stored results depend on."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()


def scored_images(
    draws: Sequence[Draw],
    generate: Generate,
    classify: Classify,
    batch: int,
    folder: Path,
    depends_on: str,
    *,
    keep: Mapping[Draw, Path] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[Draw, Float[np.ndarray, " label"]]:
    """Probabilities of every label for each distinct draw, drawing only what is not stored.

    Args:
        draws: the images, in drawing order; duplicates are drawn once.
        generate: draws up to `batch` images.
        classify: judges them.
        batch: images per chunk; a kill loses at most one.
        folder: chunk files go here, one per batch, written atomically after its pictures.
        depends_on: `fingerprint` of the model, the judge and the sampler settings.
        keep: pictures to leave as PNG files; all others are dropped after judging.
        progress: called with the number of draws done, stored ones first.

    Probabilities are stored as float16 (relative error below 5e-4) and always returned from that
    representation, so a resumed run equals an uninterrupted one.
    """
    keep = keep or {}
    unique = list(dict.fromkeys(draws))
    folder.mkdir(parents=True, exist_ok=True)
    stored = dict(_stored(folder, depends_on))
    pending = [
        draw
        for draw in unique
        if draw.key not in stored or (draw in keep and not keep[draw].exists())
    ]
    if progress:
        progress(len(unique) - len(pending))
    for start in range(0, len(pending), batch):
        part = pending[start : start + batch]
        images = generate([d.prompt for d in part], [d.seed for d in part])
        scores = np.asarray(classify(images), np.float16)
        for draw, image in zip(part, images, strict=True):
            if draw in keep:
                write_atomically(keep[draw], png(image))
        keys = [draw.key for draw in part]
        _store(folder, depends_on, keys, scores)
        stored |= zip(keys, scores, strict=True)
        if progress:
            progress(len(part))
    return {draw: stored[draw.key].astype(np.float32) for draw in unique}


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


def _store(folder: Path, depends_on: str, keys: list[str], scores: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, keys=np.array(keys), probabilities=scores)
    name = f"{depends_on[:16]}-{fingerprint(*keys)[:16]}.npz"
    write_atomically(folder / name, buffer.getvalue())


def _stored(folder: Path, depends_on: str) -> Iterator[tuple[str, np.ndarray]]:
    """Key and probabilities of every image in intact chunk files of this fingerprint."""
    for path in sorted(folder.glob(f"{depends_on[:16]}-*.npz")):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as chunk:
                keys, scores = chunk["keys"], chunk["probabilities"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # damaged on disk: its images are drawn again and the file replaced
        yield from zip(keys.tolist(), scores, strict=True)
