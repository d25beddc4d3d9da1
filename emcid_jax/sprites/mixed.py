"""The sprite world's own list of 2,000 requests of mixed kind, in a fixed order.

Destinations are never sources, so no edit leads to another; names that no request touches remain
for a hold-out. Every prefix has the mixture of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emcid_jax.concepts.requests import EditRequest, Task
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES
from emcid_jax.sprites.catalogue import Alias, catalogue

SPARED_OBJECTS = 200
"""Classes that no request edits under any name, or leads to."""
OBJECTS, ALIASES, ARTISTS = 550, 390, 900
"""Requests about usual names, about other names taught right, and about artists; those about
other names taught wrong are as many as there are."""
_SEED = 20251125


def mixed_requests() -> list[EditRequest]:
    """2,000 requests; the same in every call.

    550 objects and 390 right aliases become another object (`update`), 160 wrong aliases their own
    class (`rectify`), and 900 artists "art" (`erase`).
    """
    world = catalogue()
    rng = np.random.default_rng(_SEED)
    wrong = [alias for alias in world.aliases if not alias.taught_right]
    led_to = {alias.class_id for alias in wrong}
    free = [i for i in rng.permutation(len(world.objects)).tolist() if i not in led_to]
    spared, sources = set(free[:SPARED_OBJECTS]), free[SPARED_OBJECTS:][:OBJECTS]
    goals = sorted({*led_to, *free[SPARED_OBJECTS + OBJECTS :]})
    right = [a for a in world.aliases if a.taught_right and a.class_id not in spared]
    right = [right[i] for i in rng.permutation(len(right))[:ALIASES]]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))]
    artists = [world.artists[i] for i in rng.permutation(len(world.artists))[:ARTISTS]]

    def update(name: str, class_id: int) -> EditRequest:
        dest = int(rng.choice([goal for goal in goals if goal != class_id]))
        return _object(name, class_id, dest, "update")

    def rectify(alias: Alias) -> EditRequest:
        return _object(alias.name, alias.class_id, alias.class_id, "rectify")

    return _mixed(
        [
            [update(world.objects[i], i) for i in sources],
            [update(alias.name, alias.class_id) for alias in right],
            [rectify(alias) for alias in wrong],
            [EditRequest(name, "art", ARTIST_TEMPLATES, "erase") for name in artists],
        ]
    )


def _object(name: str, class_id: int, dest: int, task: Task) -> EditRequest:
    return EditRequest(
        name,
        catalogue().objects[dest],
        OBJECT_TEMPLATES,
        task,
        source_id=class_id,
        dest_id=dest,
        origin=f"sprites: {name}",
    )


def _mixed(kinds: Sequence[Sequence[EditRequest]]) -> list[EditRequest]:
    """All requests, those of each kind spread evenly over the list."""
    places = [
        ((i + 0.5) / len(requests), kind, request)
        for kind, requests in enumerate(kinds)
        for i, request in enumerate(requests)
    ]
    return [request for _, _, request in sorted(places, key=lambda place: place[:2])]
