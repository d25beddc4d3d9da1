"""Names that no request touches: half are protected where a method can do so, half are held out.

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
from emcid_jax.evaluation.drawing.draw import Named
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.evenly import evenly

GROUPS = {OBJECT: SENTENCES, erase.ARTIST: erase.SENTENCES}
"""Label groups with untouched names, and what is drawn of these."""


class UntouchedNames(NamedTuple):
    """Names that no request touches."""

    held_out: tuple[Named, ...]
    """Judged; no method is given them."""
    protected: tuple[Named, ...]
    """Judged, and given to methods that protect names."""
    to_protect: tuple[str, ...]
    """All names that these methods are given."""


def split_untouched(
    requests: Sequence[EditRequest],
    groups: Mapping[str, LabelGroup],
    count: int = 0,
    prompts: int = 0,
) -> UntouchedNames:
    """Splits the judge's objects and artists that no request has as source or destination.

    Every second one is protected, from the first on. Of the others `count` per group are judged, of
    the protected a quarter as many, spread evenly; 0: all. Each is drawn on `prompts` sentences; 0:
    all.
    """
    held_out, protected, to_protect = [], [], []
    for group, sentences in GROUPS.items():
        if group not in groups:
            continue
        free = list(_untouched(requests, groups[group]))
        to_protect += [groups[group].labels[label][0] for label in free[::2]]
        for labels, most, into in (
            (free[1::2], count, held_out),
            (free[::2], -(-count // 4), protected),
        ):
            for label in evenly(labels, most):
                name = groups[group].labels[label][0]
                drawn = min(prompts or len(sentences), len(sentences))
                places = range(label, label + drawn)
                chosen = [sentences[place % len(sentences)] for place in places]
                into.append(Named(name, group, label, draws_of(name, chosen)))
    return UntouchedNames(tuple(held_out), tuple(protected), tuple(to_protect))


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
