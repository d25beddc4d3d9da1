"""The figures of a comparison, from its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emcid_jax.reporting.plots.curves import Curves, Point, Scale, exponent, figure

Row = Mapping[str, Any]

SHARES = {
    "shown": "edit success",
    "shown_unseen": "edit success, unseen sentences",
    "acc_s": "held out",
    "own": "destination fidelity",
    "h": "H",
    "h_dest_unseen": "H_dest, unseen sentences",
}
"""Panels of `curves`."""
QUALITY = {"clip": "CLIP score of captions", "fid": "FID to the unedited model"}
"""Two more where general quality was measured."""
COSTS: tuple[tuple[str, str, Scale], ...] = (
    ("processor", "processor time, s", "log"),
    ("mebibytes", "peak memory, MiB", "linear"),
)


def curves(rows: Sequence[Row], kind: str = "svg") -> bytes:
    """The shares of every method over the number of requests; SVG or PNG."""
    names = _names(rows)
    panels = [
        Curves(title, {name: _points(rows, name, key) for name in names})
        for key, title in SHARES.items()
    ]
    for key, title in QUALITY.items():
        found = {name: _points(rows, name, key) for name in names}
        if any(found.values()):
            panels.append(Curves(title, found, scale="linear"))
    return figure(panels, names, kind=kind)


def cost(rows: Sequence[Row], kind: str = "svg") -> bytes:
    """Time and memory of every method over the number of requests; SVG or PNG."""
    names = _names(rows)
    panels = [
        Curves(title, {name: _costs(rows, name, key) for name in names}, scale)
        for key, title, scale in COSTS
    ]
    return figure(panels, names, across=2, kind=kind)


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """How each cost grows with the number of requests, per method."""
    return {
        key: {name: exponent(_costs(rows, name, key)) for name in _names(rows)}
        for key in ("seconds", "processor", "mebibytes")
    }


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows))


def _points(rows: Sequence[Row], name: str, key: str) -> list[Point]:
    found = []
    for row in sorted(rows, key=lambda row: row["count"]):
        if row["name"] == name and key in row["edited"]:
            one = row["edited"][key]
            ends = one.get("low"), one.get("high")
            found.append(Point(row["count"], one["value"], *ends, not row["guard"]["intact"]))
    return found


def _costs(rows: Sequence[Row], name: str, key: str) -> list[Point]:
    mine = sorted((row for row in rows if row["name"] == name), key=lambda row: row["count"])
    return [Point(row["count"], row[key]) for row in mine if row[key]]
