"""What a tortured run is counted as."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.torture.child import MEMORY, Ended

Verdict = Literal["right", "clear error", "wrong", "traceback", "hang", "memory"]
VERDICTS: tuple[Verdict, ...] = ("right", "clear error", "wrong", "traceback", "hang", "memory")
"""Right (or identical); refused with a line; wrong without a word; the rest speak for themselves.
All but the first two are failures."""


class Row(NamedTuple):
    """One tortured run."""

    kind: str
    case: int
    verdict: Verdict
    detail: str = ""
    """What there is to know about a failure."""


def of_run(ended: Ended) -> tuple[Verdict, str]:
    """What a run of main counts as by itself: whether its result is right is for others to say."""
    if ended.hung:
        return "hang", ended.err[-300:]
    if ended.memory > MEMORY:
        return "memory", f"{ended.memory / 2**20:.0f} MiB"
    if ended.code == 0:
        return "right", ""
    if ended.code == 2:
        problem = bad_message(ended.err)
        return ("traceback", problem) if problem else ("clear error", ended.err[:300])
    return "traceback", f"exit code {ended.code}: {ended.err[-800:]}"


def bad_message(text: str) -> str:
    """What is wrong with what the user is told; empty if nothing is."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not any(line.startswith("error: ") for line in lines):
        return f"no line says what is wrong: {text[-300:]!r}"
    if "Traceback (most recent call last)" in text:
        return f"a traceback: {text[-500:]!r}"
    hidden = sorted({c for c in text if not c.isprintable() and c not in "\n\t"})
    return f"unprintable characters {hidden!r}" if hidden else ""


def write(path: Path, row: Row) -> None:
    """Appends a row; a line that a kill cut stays alone."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(row._asdict(), ensure_ascii=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(paths: Iterable[Path]) -> list[Row]:
    """All whole rows."""
    rows = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return sorted(set(rows))


def table(rows: Sequence[Row]) -> str:
    """How often each kind came to what."""

    def line(kind: str, mine: Sequence[str]) -> str:
        return f"{kind:<26}{len(mine):>7}" + "".join(f"{mine.count(v):>13}" for v in VERDICTS)

    head = f"{'kind':<26}{'runs':>7}" + "".join(f"{name:>13}" for name in VERDICTS)
    kinds = dict.fromkeys(row.kind for row in rows)
    lines = [line(kind, [row.verdict for row in rows if row.kind == kind]) for kind in kinds]
    return "\n".join([head, *lines, line("all", [row.verdict for row in rows])])
