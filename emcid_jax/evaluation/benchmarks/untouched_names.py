"""Names that no request touches: half are told to methods that can keep names, half are judged.

Which names these are depends on the whole list of requests, so that every prefix of it is judged by
the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks import erase
from emcid_jax.evaluation.drawing.before_after import draws_of
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.evenly import evenly

GROUPS = {OBJECT: SENTENCES, erase.ARTIST: erase.SENTENCES}
"""Label groups with names to spare, and what is drawn of these."""


class Name(NamedTuple):
    """A name that nobody edits, and its images."""

    name: str
    group: str
    label: int
    """Index in the label group."""
    draws: tuple[Draw, ...]


class Spared(NamedTuple):
    """Names that no request touches."""

    held: tuple[Name, ...]
    """Judged, and told to nobody."""
    told: tuple[Name, ...]
    """Judged, and told."""
    keep: tuple[str, ...]
    """All names that are told."""


def spare(
    requests: Sequence[EditRequest],
    groups: Mapping[str, LabelGroup],
    count: int = 0,
    prompts: int = 0,
) -> Spared:
    """Splits the judge's objects and artists that no request has as source or destination.

    Every second one is told, from the first on. Of the others `count` per group are judged, of the
    told a quarter as many, spread evenly; 0: all. Each is drawn on `prompts` sentences; 0: all.
    """
    held, told, keep = [], [], []
    for group, sentences in GROUPS.items():
        if group not in groups:
            continue
        free = list(_untouched(requests, groups[group]))
        keep += [groups[group].labels[label][0] for label in free[::2]]
        for labels, most, into in (
            (free[1::2], count, held),
            (free[::2], -(-count // 4), told),
        ):
            for label in evenly(labels, most):
                name = groups[group].labels[label][0]
                drawn = min(prompts or len(sentences), len(sentences))
                places = range(label, label + drawn)
                chosen = [sentences[place % len(sentences)] for place in places]
                into.append(Name(name, group, label, draws_of(name, chosen)))
    return Spared(tuple(held), tuple(told), tuple(keep))


def _untouched(requests: Sequence[EditRequest], group: LabelGroup) -> Iterator[int]:
    """Labels that are found by their usual name, and of which no request has any name."""
    named = {normalised(name) for one in requests for name in (one.source, *one.dests)}
    ids: set[int | None] = set()
    if group.name == OBJECT:
        ids = {one.source_id for one in requests} | {one.dest_id for one in requests}
    for label, names in enumerate(group.labels):
        own = {normalised(name) for name in names}
        if label not in ids and not own & named and group.find(names[0]) == label:
            yield label
