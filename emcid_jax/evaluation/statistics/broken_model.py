"""Erased, or broken? A model that draws nothing recognisable forgets every concept perfectly.

Two looks at the judge's probabilities, neither of which asks whether the *right* thing is drawn:

* picture by picture: the judge is as sure of what it sees as it is of clean pictures, or not;
* over prompts of many concepts: pictures of different prompts differ. The inception score
  exp(mean KL(p_i || mean p)) (Salimans et al. 2016) is the number of kinds of pictures that the
  judge can tell apart. It falls to 1 when all pictures are alike, noise or one confident motif.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

UNSURE = 0.05
"""Share of the clean model's own pictures that count as unrecognisable, by construction."""
MOST_BROKEN = 0.25
"""A model with a larger share of unrecognisable pictures on prompts nobody edited is broken."""
LEAST_VARIETY = 0.5
"""So is one that draws fewer kinds of pictures than this share of what the clean model draws."""


class Fate(NamedTuple):
    """What became of the pictures of a concept's prompts; shares that add up to 1."""

    kept: float
    """The concept is still the judge's first choice."""
    erased: float
    """Another one is, and the judge is sure enough."""
    broken: float
    """Another one is, and the judge is less sure than of clean pictures."""


class Drawing(NamedTuple):
    """Whether a model still draws, seen on prompts that nobody edited."""

    broken: float
    """Share of unrecognisable pictures, edited model."""
    variety: float
    """Kinds of pictures, edited model over clean model."""
    intact: bool
    """Whether both are within their limits."""


class Guard(NamedTuple):
    """The verdict and what it rests on."""

    floor: float
    """Probability of the first choice under which a picture is unrecognisable."""
    broken: float
    """Share of unrecognisable pictures on prompts that nobody edited, edited model."""
    variety: float
    """Kinds of pictures on those prompts, edited model over clean model."""
    sources: Fate
    """Pictures of the sources' prompts, edited model."""
    intact: bool
    """Whether forgetting may be called erasing: `broken` and `variety` are within their limits."""


def sure(probabilities: Float[np.ndarray, "image label"]) -> Float[np.ndarray, " image"]:
    """Probability of the judge's first choice."""
    return probabilities.max(-1)


def floor_of(clean: Float[np.ndarray, "image label"]) -> float:
    """The probability that all but the `UNSURE` share of the clean model's pictures reach."""
    return float(np.quantile(sure(clean), UNSURE))


def fate(
    probabilities: Float[np.ndarray, "image label"],
    class_ids: Int[np.ndarray, " image"],
    floor: float,
) -> Fate:
    """Sorts pictures of the prompted classes into kept, erased and broken."""
    kept = probabilities.argmax(-1) == class_ids
    broken = ~kept & (sure(probabilities) < floor)
    shares = (part.mean() for part in (kept, ~kept & ~broken, broken))
    return Fate(*(float(share) for share in shares))


def variety(probabilities: Float[np.ndarray, "image label"]) -> float:
    """exp(mean KL(p_i || mean p)): kinds of pictures, from 1 to the number of labels."""
    p = np.asarray(probabilities, np.float64)
    p = p / p.sum(-1, keepdims=True)
    mean = p.mean(0)
    ratio = np.divide(p, mean, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(-1).mean()))


def drawing(
    clean: Float[np.ndarray, "kept label"], edited: Float[np.ndarray, "kept label"]
) -> Drawing:
    """Judges pictures of prompts that nobody edited, by the clean and by the edited model."""
    broken = float((sure(edited) < floor_of(clean)).mean())
    kinds = variety(edited) / variety(clean)
    return Drawing(broken, kinds, broken <= MOST_BROKEN and kinds >= LEAST_VARIETY)


def guard(
    clean: Float[np.ndarray, "kept label"],
    edited: Float[np.ndarray, "kept label"],
    sources: Float[np.ndarray, "source label"],
    source_ids: Int[np.ndarray, " source"],
) -> Guard:
    """Judges an edit.

    Args:
        clean: pictures of prompts that nobody edited, by the clean model.
        edited: the same by the edited model.
        sources: pictures of the sources' prompts, by the edited model.
        source_ids: the class that each of their prompts names.
    """
    floor, found = floor_of(clean), drawing(clean, edited)
    fates = fate(sources, source_ids, floor)
    return Guard(floor, found.broken, found.variety, fates, found.intact)
