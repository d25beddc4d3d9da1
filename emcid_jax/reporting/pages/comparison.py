"""`evaluation.html`: methods side by side in one page that needs no network and no script."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from emcid_jax.reporting import published
from emcid_jax.reporting.pages.render import render
from emcid_jax.reporting.plots import comparison
from emcid_jax.reporting.plots.before_after import Grid
from emcid_jax.reporting.tables import COST, GROUPS, QUALITY, UNEDITED, Row, counts, short


class Gathered(NamedTuple):
    """A figure of another task."""

    title: str
    caption: str
    image: bytes
    kind: str
    """MIME type."""


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonData:
    """All the page shows, as plain data; what is None or empty is left out."""

    model: str
    rows: Sequence[Row]
    """Cells, as in `evaluation.json`."""
    grid: Grid | None = None
    gathered: Sequence[Gathered] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def report_html(data: ComparisonData) -> str:
    """The whole page as text."""
    about = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return render("comparison.html", **about, **(_measured(data.rows) if data.rows else {}))


def _measured(rows: Sequence[Row]) -> dict[str, Any]:
    """What the page shows of the cells."""
    known, names = counts(rows), list(dict.fromkeys(row["name"] for row in rows))
    cells = {(row["name"], row["count"]): row for row in rows}
    of_count = {count: [row for row in rows if row["count"] == count] for count in known}
    ours = {name: [cells.get((name, count)) for count in known] for name in names}
    groups = GROUPS | (QUALITY if any("clip" in row["edited"] for row in rows) else {})
    keys = [key for part in groups.values() for key in part]
    exponents = comparison.exponents(rows)
    return {
        "counts": known,
        "first": names[0],
        "value": _value,
        "winners": [
            max(mine, key=lambda row: _value(row, "h_dest_unseen") or 0.0)
            for mine in of_count.values()
        ],
        "curves": comparison.curves(rows),
        "groups": groups,
        "width": len(keys) + 2,
        "main": [{"count": count, "lines": _lines(mine, keys)} for count, mine in of_count.items()],
        "published": [
            _published_h(ours),
            *(_published_aice(ours, metric) for metric in published.PUBLISHED_OTHERS),
        ],
        "mixed": published.PUBLISHED_MIXED,
        "forms": _forms([row for row in rows if row.get("forms")]),
        "cost_curves": comparison.cost(rows),
        "costs": [
            {
                "title": f"{_COST_NAMES[key]}, {unit}",
                "lines": [
                    {
                        "name": name,
                        "costs": [row and row[key] for row in mine],
                        "exponent": exponents[key].get(name),
                    }
                    for name, mine in ours.items()
                ],
            }
            for key, unit in COST.items()
        ],
    }


def _lines(mine: Sequence[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The main table's lines for one number of requests: the unedited model, then the methods."""
    best = {key: _best(mine, key) for key in keys}

    def line(row: Row, *, method: bool) -> dict[str, Any]:
        cells = []
        for key in keys:
            one = {"value": None, "low": None, "high": None} | row["edited"].get(key, {})
            fair = method and None not in (one["value"], best[key]) and _fair(row, key)
            cells.append(one | {"best": fair and short(one["value"]) == short(best[key])})
        intact = row["guard"]["intact"]
        return {"name": row["name"], "method": method, "cells": cells, "intact": intact}

    clean = {"name": UNEDITED, "edited": mine[0]["clean"], "guard": {"intact": True}}
    return [line(clean, method=False), *(line(row, method=True) for row in mine)]


def _best(rows: Sequence[Row], key: str) -> float | None:
    values = [_value(row, key) for row in rows if _fair(row, key)]
    known = [value for value in values if value is not None]
    return (min if key == "fid" else max)(known, default=None)


def _fair(row: Row, key: str) -> bool:
    """Whether a cell may be best: that a broken model erases is no merit."""
    return row["guard"]["intact"] or not key.startswith("gone")


def _value(row: Row | None, key: str) -> float | None:
    """A figure of a cell's edited model; None where there is none."""
    return None if row is None else row["edited"].get(key, {}).get("value")


def _forms(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Recall by form of the names, a column per method, at the largest number of requests."""
    if not rows:
        return None
    count = max(row["count"] for row in rows)
    mine = [row for row in rows if row["count"] == count]
    lines = {
        form: (one["names"], [row["forms"].get(form, {}).get("value") for row in mine])
        for row in mine
        for form, one in row["forms"].items()
    }
    return {"count": count, "methods": [row["name"] for row in mine], "lines": lines}


Ours = Mapping[str, Sequence[Row | None]]
"""A method's cells, one per number of requests; None where there is none."""


def _published_h(ours: Ours) -> dict[str, Any]:
    """H of this run above published ones."""
    return {
        "title": "H, erasing",
        "places": 2,
        "ours": {name: [_value(row, "h") for row in mine] for name, mine in ours.items()},
        "about_ours": "this run, mixed requests, H",
        "counts": published.H_COUNTS,
        "others": published.PUBLISHED_H,
        "about_others": "celebrities, SPEED's protocol",
    }


def _published_aice(ours: Ours, metric: str) -> dict[str, Any]:
    """An aggregate of AICE in this run above published ones."""

    def value(row: Row | None) -> float | None:
        return None if row is None else row["aice"]["aice"].get(metric, {}).get("value")

    meaning = published.MEANINGS[metric]
    return {
        "title": f"AICE, {meaning.group}: {meaning.name}",
        "places": 3,
        "ours": {name: [value(row) for row in mine] for name, mine in ours.items()},
        "about_ours": "this run, objects among the requests",
        "counts": published.OTHERS_COUNTS,
        "others": published.PUBLISHED_OTHERS[metric],
        "about_others": "",
    }


_COST_NAMES = {
    "seconds": "Wall time",
    "processor": "Processor time of all cores",
    "mebibytes": "Peak memory of the process while writing",
}
