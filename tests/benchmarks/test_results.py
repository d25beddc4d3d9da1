from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.results import Check, Row, line, write
from benchmarks.timing import take_turns


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (40.0, 40.0, math.inf, True),
        (39.9, 40.0, math.inf, False),
        (1e-4, -math.inf, 1e-4, True),
        (2e-4, -math.inf, 1e-4, False),
        (math.nan, -math.inf, math.inf, False),
    ],
)
def test_a_check_passes_within_its_limits(
    value: float, low: float, high: float, passed: bool
) -> None:
    assert Check("x", value, low, high).passed is passed


def test_the_ratio_says_how_much_less_ours_is(tmp_path: Path) -> None:
    row = Row("sampling", "s", 6.0, 2.0, 1.0, (Check("PSNR", 30.0, low=40.0),), {"images": 16})
    text = line(row)
    assert " 3.00 " in text
    assert "FAILED" in text
    write(tmp_path / "results.json", [row], {"quick": True})
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["quick"] is True
    assert found["rows"][0]["ratio"] == 3.0
    assert found["rows"][0]["checks"] == [{"name": "PSNR", "value": 30.0, "passed": False}]


def test_functions_take_turns() -> None:
    calls: list[str] = []
    first, second = take_turns(2, lambda: calls.append("a"), lambda: calls.append("b") or "done")
    assert calls == ["a", "b", "a", "b"]
    assert first.seconds >= 0
    assert second.result == "done"
