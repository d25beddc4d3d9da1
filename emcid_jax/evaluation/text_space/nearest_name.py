"""Which name a prompt reads as, in text space: the one whose clean final features are nearest.

No image is drawn, so one edit is judged in seconds. Names stand in a template that no edit used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.editing.encoder.whole_prompts import end_features
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize


class Readings(NamedTuple):
    """What an edit does to names; distances are of final features at the end token."""

    edited: float
    """Share of sources that read as their destination."""
    source: float
    """Share of sources that still read as themselves."""
    kept: float
    """Share of kept names that read as themselves."""
    gap: float
    """Distance of sources to their destination, after over before: median."""
    drift: float
    """|f' - f| / |f| of kept names: median."""

    @property
    def both(self) -> float:
        """Mean of `edited` and `kept`."""
        return (self.edited + self.kept) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Names in a template, and how the clean model reads them."""

    encoder: TextEncoder
    """The clean one."""
    names: tuple[str, ...]
    """All that a prompt may read as."""
    ids: Int[np.ndarray, "name token"]
    clean: Float[np.ndarray, "name dim"]
    sources: Int[np.ndarray, " request"]
    """Places in `names`."""
    destinations: Int[np.ndarray, " request"]
    kept: Int[np.ndarray, " kept"]

    def read(self, edited: Mapping[str, Any]) -> Readings:
        """What the text encoder with parameters `edited` makes of the names."""
        rows = np.concatenate([self.sources, self.kept])
        states = end_features(self.encoder, edited, self.ids[rows])
        found, count = nearest(states, self.clean), len(self.sources)
        wanted = self.clean[self.destinations]
        apart, before = (
            np.linalg.norm(one - wanted, axis=1)
            for one in (states[:count], self.clean[self.sources])
        )
        moved = np.linalg.norm(states[count:] - self.clean[self.kept], axis=1)
        return Readings(
            float((found[:count] == self.destinations).mean()),
            float((found[:count] == self.sources).mean()),
            float((found[count:] == self.kept).mean()),
            float(np.median(apart / before)),
            float(np.median(moved / np.linalg.norm(self.clean[self.kept], axis=1))),
        )


def make_reader(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    keep: Sequence[str],
    template: str,
    count: int = 0,
) -> Reader:
    """A reader of the requests' names and of those in `keep` that no request edits.

    Args:
        encoder: the clean text encoder.
        requests: of one destination each; an empty one is the empty prompt.
        keep: names that the edit should not change; all of them can be read.
        template: holds one {}.
        count: so many of `keep` are judged, spread evenly over the list; 0: all.
    """
    sources = [request.source for request in requests]
    destinations = [request.dests[0] for request in requests]
    places: dict[str, int] = {}
    names = []
    for name in (*sources, *destinations, *keep):
        if normalised(name) not in places:
            places[normalised(name)] = len(names)
            names.append(name)
    ids = tokenize(
        encoder.tokenizer, [fill(template, name).prompt if name else "" for name in names]
    )
    edited = {normalised(name) for name in sources}
    kept = list(dict.fromkeys(normalised(name) for name in keep))
    kept = evenly([name for name in kept if name not in edited], count)

    def rows(chosen: Sequence[str]) -> np.ndarray:
        return np.array([places[normalised(name)] for name in chosen], np.int64)

    clean = end_features(encoder, encoder.params, ids)
    parts = rows(sources), rows(destinations), rows(kept)
    return Reader(encoder, tuple(names), ids, clean, *parts)


def nearest(
    states: Float[np.ndarray, "row dim"], gallery: Float[np.ndarray, "name dim"]
) -> Int[np.ndarray, " row"]:
    """Per state the row of `gallery` at the smallest distance."""
    squares = np.square(gallery).sum(axis=1) - 2 * states @ gallery.T
    return squares.argmin(axis=1)
