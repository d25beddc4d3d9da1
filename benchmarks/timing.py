"""Timing of things that are to be compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """The fastest run's wall time in seconds, and what the last run returned."""

    seconds: float
    result: Any


def take_turns(repeats: int, *functions: Callable[[], Any]) -> list[Timed]:
    """Times the functions one after the other, `repeats` times over.

    They take turns so that a machine that slows down slows all of them. Each must return only when
    its result is on the host. Warm up before.
    """
    rounds = [[timed(function) for function in functions] for _ in range(repeats)]
    return [
        Timed(min(run.seconds for run in runs), runs[-1].result)
        for runs in zip(*rounds, strict=True)
    ]


def timed(function: Callable[[], Any]) -> Timed:
    """One call."""
    began = time.perf_counter()
    result = function()
    return Timed(time.perf_counter() - began, result)
