"""Draw images once each, judge them, and keep the judge's word on disk so that a kill loses little.

An image is named by its prompt and seed. Results are stored in chunks whose file name carries the
fingerprint of everything else that decides them (model, judge, sampler settings): a run with other
settings never reads them, a run with more requests draws only what is new.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emcid_jax.evaluation.drawing.draw import Classify, Draw, Generate
from emcid_jax.evaluation.drawing.png import png
from emcid_jax.storage.files import write_atomically
from emcid_jax.storage.hashing import fingerprint


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
