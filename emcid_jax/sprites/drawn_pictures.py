"""The drawn training pictures, kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from emcid_jax.sprites.captions import Caption
from emcid_jax.sprites.drawing import draw
from emcid_jax.storage.files import replacing


def drawn_pictures(
    captions: Sequence[Caption], seed: int, path: Path
) -> UInt8[np.ndarray, "picture 64 64 3"]:
    """One per caption, memory-mapped from `path`; drawn first if the file is not there."""
    if not path.exists():
        rng = np.random.default_rng(seed)
        rows = [draw(c.picture, rng) for c in tqdm(captions, desc="pictures", mininterval=5)]
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(rows))
    return np.load(path, mmap_mode="r")
