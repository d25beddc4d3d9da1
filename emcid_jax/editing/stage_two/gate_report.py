"""What is reported about an edit's gates."""

from __future__ import annotations

import dataclasses
from typing import Literal

Relation = Literal["nested", "same destination", "kept", "near"]
AMBIGUOUS = 0.5
"""Share of a name's contexts from which on a gate counts as answering to it."""


@dataclasses.dataclass(frozen=True)
class Mistaken:
    """A name that a gate could take for its own."""

    name: str
    relation: Relation
    """`nested`: one name ends with the other; `same destination`; `kept`: a destination or a name
    to keep; `near`: any other."""
    score: float
    """The highest of its contexts, by the closed form; the gate's own name scores 1."""
    fitted: float
    """The same by the fitted gate."""
    fires: float
    """Share of its contexts at which the fitted gate answers."""


@dataclasses.dataclass(frozen=True)
class GateReport:
    """One request's gate."""

    source: str
    threshold: float
    recall: float
    """Share of its own contexts at which it answers."""
    lowest: float
    """Lowest score of its own contexts."""
    false_firing: float
    """Share of the captions' tokens at which it answers though the name does not stand there."""
    mistaken: tuple[Mistaken, ...] = ()
    """The names that it was held against."""
    shares: str = ""
    """Source whose unit answers for it: that has the same destination and cannot be told apart."""
    spoken: float = 0.0
    """Share of the captions' tokens at which the name itself, or its plural, ends. A unit answers
    there whatever the word means."""
    inside: tuple[str, ...] = ()
    """Names of the edit, or to keep, in which it stands before the end, as "chain" in "chain mail".
    The unit answers there too: what comes behind a token cannot change its state."""


@dataclasses.dataclass(frozen=True)
class RoomReport:
    """What the room for an edit's units costs an MLP that keeps its width."""

    gone: int
    """Hidden units that left."""
    inner: int
    """Hidden units that there are."""
    lost: float
    """Root mean square of what the MLP gives otherwise without them, at tokens of captions that
    nothing was fitted to, as a share of that of what it gives."""


@dataclasses.dataclass(frozen=True)
class UnitsReport:
    """All gates of an edit."""

    gates: tuple[GateReport, ...]
    false_firing: float
    """Share of the captions' tokens at which any gate answers wrongly."""
    tokens: int
    """Tokens of captions that this was measured on."""
    separability: tuple[float, ...] = ()
    """By block: share of the names that its states tell from all others, see
    `units.separability`; empty where nothing was compared."""
    room: RoomReport | None = None
    """Where the units replace others of the MLP."""

    @property
    def ambiguous(self) -> list[tuple[GateReport, Mistaken]]:
        """Pairs that the fit could not tell apart: the gate answers to half of the other's
        contexts or more."""
        return [
            (gate, other)
            for gate in self.gates
            for other in gate.mistaken
            if other.fires >= AMBIGUOUS
        ]
