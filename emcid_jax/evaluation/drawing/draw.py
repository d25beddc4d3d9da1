"""One image to draw: its prompt and its seed."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Generate = Callable[[list[str], list[int]], np.ndarray]
"""Prompts and seeds to uint8 images (image, height, width, 3)."""


Classify = Callable[[np.ndarray], np.ndarray]
"""Images to probabilities (image, label)."""


class Draw(NamedTuple):
    """One image: its prompt and the seed of its initial noise."""

    prompt: str
    seed: int

    @property
    def key(self) -> str:
        """Name of this image in stored results (32 hex digits)."""
        return hashlib.sha256(f"{self.seed}\n{self.prompt}".encode()).hexdigest()[:32]


class Named(NamedTuple):
    """A name that a judge knows, and images of it."""

    name: str
    group: str
    label: int
    """Index in the judge's label group."""
    draws: tuple[Draw, ...]


def drawn_seeds(name: str, seed: int, count: int) -> list[int]:
    """Image seeds in [0, 100000) that depend on the name and the seed only."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    return rng.integers(0, 100_000, count).tolist()
