"""Concepts of a bank chosen by name, pattern or request, and two banks compared."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from emcid_jax.concepts.conflicts import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank.concepts import Concept, identity
from emcid_jax.runtime.errors import UserError


def select(
    concepts: Sequence[Concept],
    names: Sequence[str] = (),
    query: str = "",
    requests: Sequence[EditRequest] = (),
) -> list[Concept]:
    """The concepts that any of the criteria picks; case and white space do not matter.

    Args:
        concepts: what to pick from.
        names: sources. UserError for one that is not there.
        query: a pattern with `*`, `?` and `[...]` that source or destination matches.
        requests: concepts of the same source and destinations.
    """
    sources = [normalised(concept.request.source) for concept in concepts]
    wanted = {normalised(name) for name in names}
    unknown = sorted(wanted.difference(sources))
    if unknown:
        close = difflib.get_close_matches(unknown[0], sources, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; list the bank to see its concepts"
        raise UserError(f"{', '.join(map(repr, unknown))} is not in the bank{hint}")
    asked = {identity(request) for request in requests}
    pattern = normalised(query)
    return [
        concept
        for concept, source in zip(concepts, sources, strict=True)
        if source in wanted
        or identity(concept.request) in asked
        or (
            pattern  # An empty one would match the empty prompt, to which names are erased.
            and any(
                fnmatch.fnmatchcase(normalised(name), pattern)
                for name in (concept.request.source, *concept.request.dests)
            )
        )
    ]


def diff(ours: Sequence[Concept], theirs: Sequence[Concept]) -> dict[str, list[str]]:
    """How two banks differ: sources `only_here`, `only_there`, and `changed` with what changed."""
    here, there = (
        {normalised(c.request.source): c for c in concepts} for concepts in (ours, theirs)
    )
    changed = []
    for source in sorted(here.keys() & there.keys()):
        a, b = _shown(here[source]), _shown(there[source])
        fields = [f"{name} {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]
        if fields:
            changed.append(f"{here[source].request.source}: {', '.join(fields)}")
    return {
        "only_here": sorted(here[s].request.source for s in here.keys() - there.keys()),
        "only_there": sorted(there[s].request.source for s in there.keys() - here.keys()),
        "changed": changed,
    }


def _shown(concept: Concept) -> dict[str, Any]:
    """What `diff` compares."""
    request = concept.request
    return {
        "dest": " | ".join(request.dests),
        "task": request.task,
        "weight": request.weight,
        "strength": concept.strength,
        "memory": concept.memory[:12],
    }
