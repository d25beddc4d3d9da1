"""Pictures kept of an evaluation: which, under which names, and what the judge sees in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emcid_jax.evaluation.benchmarks.aice.protocol import AiceResult, ScoredRequest
from emcid_jax.evaluation.drawing.draw import Draw

HOLDOUT_PICTURES = 24
"""Hold-out classes of which a picture is kept."""


class Seen(NamedTuple):
    """A kept picture and what the judge makes of it."""

    path: Path
    label: str
    """Usual name of the most probable class."""
    probability: float


class Pair(NamedTuple):
    """One prompt and seed before and after the edit."""

    name: str
    """The request's source, or the hold-out class."""
    prompt: str
    seed: int
    before: Seen
    after: Seen
    wanted: Seen | None = None
    """The destination named in the prompt, clean model, same seed (requests only)."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What AICE found and the pictures that show it."""

    result: AiceResult
    pairs: Mapping[int, Pair]
    """One pair per scored request, by the request's position in the run."""
    holdout_pairs: tuple[Pair, ...]
    """Up to `HOLDOUT_PICTURES` hold-out classes, spread evenly over the list beforehand."""


def shown_draws(one: ScoredRequest) -> tuple[Draw, Draw]:
    """The picture kept of a request and the one of its destination: a free sentence if any."""
    if one.general_source:
        return one.general_source[0], one.general_dest[0]
    return one.edit_source[0], one.edit_dest[0]
