"""What is told of an edit's gates: the names that each could take for its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from emcid_jax.concepts.conflicts import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.stage_two.gate_report import GateReport, Mistaken, Relation
from emcid_jax.editing.units.names import Names


def mistaken(
    names: Names,
    requests: Sequence[EditRequest],
    gate: int,
    others: Int[np.ndarray, " name"],
    first: Float[np.ndarray, " dim"],
    final: Float[np.ndarray, " dim"],
    threshold: float,
) -> tuple[Mistaken, ...]:
    """How the names `others` score with a gate, by the closed form and by the fitted gate."""
    found = []
    for other in others.tolist():
        own = names.own[other][names.mask[other]]
        fitted = own @ final
        found.append(
            Mistaken(
                names.texts[other],
                _relation(names, requests, gate, other),
                float((own @ first).max()),
                float(fitted.max()),
                float((fitted > threshold).mean()),
            )
        )
    return tuple(found)


def _relation(names: Names, requests: Sequence[EditRequest], gate: int, other: int) -> Relation:
    if other >= names.sources:
        return "kept"
    mine, theirs = names.keys[gate], names.keys[other]
    if f" {mine}".endswith(f" {theirs}") or f" {theirs}".endswith(f" {mine}"):
        return "nested"
    dests = [{normalised(dest) for dest in requests[i].dests} for i in (gate, other)]
    return "same destination" if dests[0] == dests[1] else "near"


def inside(names: Names) -> list[tuple[str, ...]]:
    """For every source the other names in which its words stand, but not at the end."""
    found: dict[str, list[str]] = {}
    for text, key in zip(names.texts, names.keys, strict=True):
        words = key.split()
        for start, stop in itertools.combinations(range(len(words)), 2):
            found.setdefault(" ".join(words[start:stop]), []).append(text)
    return [tuple(dict.fromkeys(found.get(key, ()))) for key in names.keys[: names.sources]]


def shared(reports: Sequence[GateReport]) -> list[GateReport]:
    """The reports, with names that need no unit of their own told so.

    A name needs none where the gate of an earlier one, which leads to the same destination and has
    a unit, answers in all of its contexts.
    """
    result: list[GateReport] = []
    units = {
        normalised(other.name): gate.source
        for gate in reversed(reports)
        for other in gate.mistaken
        if other.relation == "same destination" and other.fires == 1.0
    }
    with_unit: set[str] = set()
    for gate in reports:
        shares = units.get(normalised(gate.source), "")
        if shares not in with_unit:
            shares = ""
        if not shares:
            with_unit.add(gate.source)
        result.append(dataclasses.replace(gate, shares=shares))
    return result
