"""A plan's figures, and the table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from emcid_jax.editing.stage_one.concept_batch import UNKNOWN
from emcid_jax.planning.machines import GIB

PartName = Literal["stage_one", "images", "moments"]
TITLES: Mapping[PartName, str] = {
    "stage_one": "Stage I",
    "images": "images",
    "moments": "moments",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One program, and what all of its runs take."""

    name: PartName
    unit: str
    """What it does `batch` of at once, over all devices, and `count` of in all."""
    count: int
    batch: int
    one_by_one: bool
    """Whether the prompts of a concept follow each other."""
    bytes_needed: int
    """Per device: arguments, results, temporaries."""
    bytes_available: int
    """Per device."""
    flops: float
    """Of all runs together, on all devices."""
    bytes_moved: float
    """The same: what products and convolutions read and write."""
    seconds: float
    """Of all runs: FLOPs at the stated utilisation, or the traffic at the peak rate if longer."""
    collectives: Mapping[str, int] | None
    """Communication in the compiled program, by kind; None: not compiled."""
    compile_seconds: float | None
    """Time that the compiler took; None: not compiled."""
    details: Mapping[str, float]
    """Further figures."""
    encoder: str = ""
    """The text encoder that it is about, where a model has several."""

    @property
    def title(self) -> str:
        """What heads its column."""
        return f"{TITLES[self.name]} {self.encoder}".rstrip()

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.bytes_needed <= self.bytes_available


def table(parts: Sequence[Part]) -> list[str]:
    """A column per part, a row per figure."""
    rows = {
        "": [part.title for part in parts],
        "in all": [f"{part.count:,} {part.unit}" for part in parts],
        "at once": [
            f"{part.batch}{', prompt by prompt' if part.one_by_one else ''}" for part in parts
        ],
        "GiB per device": [_gib(part.bytes_needed) for part in parts],
        "of its memory": [_share(part) for part in parts],
        "computes": [amount(part.flops, "FLOP") for part in parts],
        "moves": [amount(part.bytes_moved, "B") for part in parts],
        "collectives": [_communication(part.collectives) for part in parts],
        "compiled in": [duration(part.compile_seconds) for part in parts],
        "takes": [duration(part.seconds) for part in parts],
    }
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    return [
        f"{label:<15}" + "  ".join(map(str.rjust, cells, widths)) for label, cells in rows.items()
    ]


def duration(seconds: float | None) -> str:
    """In the largest unit of which there are at least two."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def amount(number: float, unit: str) -> str:
    """With three digits and the prefix that fits."""
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= power:
            return f"{number / power:,.3g} {prefix}{unit}"
    return f"{number / 1e6:,.3g} M{unit}"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}" if count < UNKNOWN else "?"


def _share(part: Part) -> str:
    share = f"{part.bytes_needed / part.bytes_available:.0%}"
    if part.fits:
        return share
    return f"{share}: NO FIT" if part.bytes_needed < UNKNOWN else "NO FIT"


def _communication(found: Mapping[str, int] | None) -> str:
    if found is None:
        return "-"
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
