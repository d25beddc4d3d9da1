"""The names that an edit's gates must tell apart: sources, destinations and names to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from emcid_jax.concepts.conflicts import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.units.contexts import NamePrompts, name_prompts
from emcid_jax.editing.units.gates import Metric
from emcid_jax.editing.units.states import name_states
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.editing.units.strangers import strangers
from emcid_jax.models.text.encoder import TextEncoder

SHOWN = 4
"""Contexts of a name that the gates of other names are held against."""


class Strangers(NamedTuple):
    """Other words that end like the sources, whitened."""

    states: Float[np.ndarray, "source context dim"]
    mask: Bool[np.ndarray, "source context"]


class Names(NamedTuple):
    """Names with their contexts, whitened: the sources first, one per request."""

    texts: list[str]
    keys: list[str]
    """The texts, normalised."""
    own: Float[np.ndarray, "name context dim"]
    mask: Bool[np.ndarray, "name context"]
    sources: int
    """How many of them are sources."""
    strangers: tuple[Strangers, Strangers]
    """Two draws, of the sources alone."""

    def first(self, count: int) -> Names:
        """The first `count` names, all sources among them."""
        return self._replace(
            texts=self.texts[:count],
            keys=self.keys[:count],
            own=self.own[:count],
            mask=self.mask[:count],
        )

    def rows(self) -> tuple[Float[np.ndarray, "row dim"], Int[np.ndarray, " row"]]:
        """At most `SHOWN` contexts of every name, spread over them, and whose they are."""
        size = self.mask.sum(axis=1)
        known = np.argsort(~self.mask, axis=1, kind="stable")  # Those that count come first.
        places = np.arange(SHOWN) * size[:, None] // SHOWN
        name, place = np.nonzero(np.arange(SHOWN) < size[:, None])
        return self.own[name, known[name, places[name, place]]], name


def find_names(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    keep: Sequence[str],
    statistics: UnitStatistics,
    space: Metric,
    contexts: int,
    all_strangers: bool,
) -> Names:
    """Every name in its contexts. UserError for a source that does not fit, with its origin.

    With `all_strangers` every source of several tokens has some, see `strangers`.

    Destinations and names to keep stand in the templates of the first request that has them, or of
    the first request of all.
    """
    sources = {normalised(request.source) for request in requests}
    others: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for request in requests:
        for dest in request.dests:
            others.setdefault(normalised(dest), (dest, request.templates, request.origin))
    for name in keep:
        about = name, requests[0].templates, f"stage_two.preserve: {name}"
        others.setdefault(normalised(name), about)
    asked = [(request.source, request.templates, request.origin) for request in requests]
    asked += [about for key, about in others.items() if key and key not in sources]
    texts, templates, origins = (list(part) for part in zip(*asked, strict=True))
    prompts = name_prompts(encoder.tokenizer, texts, templates, statistics.pool, contexts, origins)
    count = len(requests)
    own = NamePrompts(*(part[:count] for part in prompts))

    def encoded(asked: NamePrompts) -> Float[np.ndarray, "name context dim"]:
        params = encoder.params
        return space.whiten(name_states(encoder.model, params, asked, statistics.block))

    def drawn(number: int) -> Strangers:
        found, mask = strangers(encoder.tokenizer, texts[:count], own, number, all_strangers)
        states = np.zeros((*mask.shape, len(space.mean)), np.float32)
        some = mask.any(axis=1)
        states[some] = encoded(NamePrompts(*(part[some] for part in found)))
        return Strangers(states, mask)

    keys = [normalised(text) for text in texts]
    return Names(texts, keys, encoded(prompts), prompts.mask, count, (drawn(0), drawn(1)))
