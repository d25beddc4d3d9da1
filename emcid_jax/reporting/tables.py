"""The figures of a comparison as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

GROUPS = {
    "requested change": {
        "gone": "source erased",
        "shown": "edit success",
        "gone_unseen": "source erased, unseen",
        "shown_unseen": "edit success, unseen",
    },
    "preservation": {
        "own": "destination fidelity",
        "acc_s": "held out",
        "acc_told": "protected",
    },
    "both in one": {
        "h": "H",
        "h_unseen": "H, unseen",
        "h_dest": "H_dest",
        "h_dest_unseen": "H_dest, unseen",
    },
}
"""Summary figures of a table and their headings, in groups."""
QUALITY = {"general quality": {"clip": "CLIP", "fid": "FID"}}
"""General quality, where it was measured; FID is against the unedited model."""
COLUMNS = {key: name for part in (GROUPS | QUALITY).values() for key, name in part.items()}
"""All of them; columns without a figure are left out."""
COST = {"seconds": "s", "processor": "CPU s", "mebibytes": "MiB"}
"""What an edit takes: wall time, processor time of all cores, peak memory."""
UNEDITED = "unedited"

Row = Mapping[str, Any]
"""A cell of the comparison, as in `evaluation.json`."""


def counts(rows: Sequence[Row]) -> list[int]:
    """Numbers of requests that have cells, ascending."""
    return sorted({row["count"] for row in rows})


def as_csv(rows: Sequence[Row]) -> str:
    """One line per cell and figure: n, method, metric, value and the interval's ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["n", "method", "metric", "value", "low", "high"])

    def write(row: Row, name: str, figures: Mapping[str, Any]) -> None:
        for metric, one in figures.items():
            ends = [one.get(end) for end in ("low", "high")]
            cells = ["" if x is None else f"{x:.4f}" for x in (one["value"], *ends)]
            writer.writerow([row["count"], name, metric, *cells])

    for count in counts(rows):
        mine = [row for row in rows if row["count"] == count]
        write(mine[0], UNEDITED, mine[0]["clean"])
        for row in mine:
            write(row, row["name"], row["edited"])
            forms = row.get("forms", {})  # Cells of earlier versions have none.
            write(row, row["name"], {f"form: {form}": one for form, one in forms.items()})
            cost = {"intact": float(row["guard"]["intact"])} | {part: row[part] for part in COST}
            write(row, row["name"], {name: {"value": value} for name, value in cost.items()})
    return buffer.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A line per number of requests and method; what the unedited model scores comes first."""
    known = [key for key in COLUMNS if any(key in row["edited"] for row in rows)]
    head = ["n", "method", *(COLUMNS[key] for key in known), "intact", *COST.values()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for count in counts(rows):
        mine = [row for row in rows if row["count"] == count]
        lines.append(f"| {count} | {UNEDITED} | {_cells(mine[0]['clean'], known)} | | | | |")
        for row in mine:
            verdict = "yes" if row["guard"]["intact"] else "NO"
            ends = ("" if row[part] is None else f"{row[part]:.0f}" for part in COST)
            cells = f"{_cells(row['edited'], known)} | {verdict} | {' | '.join(ends)}"
            lines.append(f"| {count} | {row['name']} | {cells} |")
    return "\n".join(lines) + "\n"


def short(value: float | None) -> str:
    """Two places, one from 10 on; nothing for None."""
    return "" if value is None else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def _cells(figures: Mapping[str, Any], known: Sequence[str]) -> str:
    return " | ".join(short(figures.get(name, {}).get("value")) for name in known)
