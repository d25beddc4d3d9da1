"""What a benchmark found: one row per comparison, with the checks that make it a fair one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Check:
    """That both sides computed the same thing: `value` within its limits."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether the value is within the limits; NaN is not."""
        return self.low <= self.value <= self.high


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: what each side spent on the same job."""

    name: str
    unit: str
    """What `released` and `ours` count, e.g. `s per concept`."""
    released: float
    ours: float
    bar: float | None
    """Ratio that is asked for; None: for information."""
    checks: tuple[Check, ...] = ()
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further figures, not compared with anything."""

    @property
    def ratio(self) -> float:
        """How many times less emcid_jax spends."""
        return self.released / self.ours


HEADER = f"{'':40}{'released':>12}{'emcid_jax':>12}{'ratio':>8}{'bar':>6}  unit"


def line(row: Row) -> str:
    """The row as text, its checks and details below it."""
    bar = "" if row.bar is None else f"{row.bar:g}"
    lines = [
        f"{row.name:40}{row.released:>12.4g}{row.ours:>12.4g}{row.ratio:>8.2f}{bar:>6}  {row.unit}"
    ]
    for check in row.checks:
        limits = [f">= {check.low:g}"] * (check.low > -math.inf)
        limits += [f"<= {check.high:g}"] * (check.high < math.inf)
        state = "ok" if check.passed else "FAILED"
        lines.append(f"    {check.name}: {check.value:.4g} ({', '.join(limits)}) {state}")
    lines += [f"    {name}: {value:.5g}" for name, value in row.details.items()]
    return "\n".join(lines)


def write(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """All rows with where and how they were measured, as JSON."""
    records = [
        {
            **dataclasses.asdict(row),
            "ratio": row.ratio,
            "checks": [
                {"name": check.name, "value": check.value, "passed": check.passed}
                for check in row.checks
            ],
        }
        for row in rows
    ]
    path.write_text(json.dumps({**about, "rows": records}, indent=2) + "\n")
