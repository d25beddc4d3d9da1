"""What a report tells of concept units: the gates, and what could be taken for their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from emcid_jax.editing.stage_two.gate_report import (
    AMBIGUOUS,
    GateReport,
    Mistaken,
    Relation,
    UnitsReport,
)
from emcid_jax.reporting.plots.units import separability_figure

MOST = 1000
"""Most pairs of confused names: an edit may have thousands of gates, and many more pairs."""
SPOKEN = 10
"""Most names in the table of those that captions say most often."""
RELATIONS: Mapping[Relation, str] = {
    "nested": "one name ends with the other",
    "same destination": "same destination",
    "kept": "a destination, or kept",
    "near": "edited, too",
}
"""In plain words."""


class WrittenUnits(NamedTuple):
    """The units of one text encoder."""

    block: int
    report: UnitsReport


class Confusion(NamedTuple):
    """A gate, and a name that it could take for its own."""

    gate: GateReport
    other: Mistaken
    relation: str
    """In plain words."""

    @property
    def ambiguous(self) -> bool:
        """Whether the fit could not tell them apart."""
        return self.other.fires >= AMBIGUOUS


class ShownUnits(NamedTuple):
    """The same as the page shows it."""

    block: int
    report: UnitsReport
    weakest: Sequence[GateReport]
    """All gates with a unit, those that open least surely first."""
    recall: float
    """Mean over them."""
    ambiguous: int
    """The first so many of `confused` could not be told apart."""
    confused: Sequence[Confusion]
    """Names that a gate answers to most, first."""
    left_out: int
    """Pairs beyond `MOST`."""
    shared: Sequence[GateReport]
    """Gates without a unit of their own."""
    inside: Sequence[tuple[str, str]]
    """Names, and longer ones in which they stand before the end."""
    spoken: Sequence[GateReport]
    """Names that captions say most often, first."""
    curve: bytes | None
    """Separability by block."""


def shown(units: WrittenUnits) -> ShownUnits:
    """What the page shows, in order.

    A name that shares a unit has no gate to be confused, and is not one that the unit is confused
    by: there it is to answer.
    """
    block, report = units
    weakest = sorted(
        (gate for gate in report.gates if not gate.shares),
        key=lambda gate: (gate.recall, -gate.threshold, gate.lowest),
    )
    owner = {gate.source: gate.shares for gate in report.gates}
    pairs = [
        Confusion(gate, other, RELATIONS[other.relation])
        for gate in weakest
        for other in gate.mistaken
        if owner.get(other.name) != gate.source
    ]
    pairs.sort(key=lambda pair: (-pair.other.fires, -pair.other.fitted, pair.gate.source))
    spoken = sorted(report.gates, key=lambda gate: -gate.spoken)[:SPOKEN]
    return ShownUnits(
        block,
        report,
        weakest,
        sum(gate.recall for gate in weakest) / max(1, len(weakest)),
        sum(pair.ambiguous for pair in pairs),
        pairs[:MOST],
        max(0, len(pairs) - MOST),
        [gate for gate in report.gates if gate.shares],
        [(gate.source, longer) for gate in report.gates for longer in gate.inside],
        [gate for gate in spoken if gate.spoken],
        separability_figure(report.separability, block) if report.separability else None,
    )
