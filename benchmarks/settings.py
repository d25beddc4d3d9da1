"""How much of everything is measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the workloads; one field for each thing that costs time."""

    repeats: int
    """Timed runs of each side, alternating; the fastest counts."""
    steps: int
    """Stage I: Adam steps per concept, on both sides."""
    concepts: int
    """Stage I: concepts that emcid_jax optimises together."""
    released_concepts: int
    """Stage I: how many of these the released procedure does, one by one."""
    captions: int
    """Second moments: captions."""
    edits: int
    """Stage II: concepts written."""
    images: int
    """Sampling: images per batch."""
    sampler_steps: int
    """Sampling, and the drawing of Stage I's training images: DDIM steps."""


FULL = Settings(
    repeats=3,
    steps=100,
    concepts=32,
    released_concepts=3,
    captions=4000,
    edits=300,
    images=16,
    sampler_steps=20,
)
QUICK = Settings(
    repeats=1,
    steps=2,
    concepts=2,
    released_concepts=1,
    captions=400,
    edits=8,
    images=2,
    sampler_steps=2,
)
"""A smoke run: everything is executed and checked, no figure means anything."""
