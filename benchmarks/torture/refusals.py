"""A system that refuses: a disk that is full after so many bytes, folders of somebody else."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.torture import child, kills
from benchmarks.torture.content import content, differences, left_over
from benchmarks.torture.verdicts import Row, of_run

FULL, DENIED = "full disk", "no permission"
OPERATIONS = ("bank merge", "bank remove", "edit_file apply", "edit_file undo", "edit_file folder")
SLOW = ("job", "bank add", "bank solve")
NOBODY = 65534


def full(place: Path, number: int, seed: int) -> Row:
    """No file may be longer than some bytes; afterwards the same command gives the same result."""
    rng = random.Random(f"{seed} {FULL} {number}")
    name = rng.choice(OPERATIONS * 4 + SLOW)
    operation, folder = kills.operations()[name], place / "runs" / f"full-{number}-{os.getpid()}"
    calm = kills.reference(place, operation) / "place"
    shutil.rmtree(folder, ignore_errors=True)
    kills.lay_out(place, operation, folder)
    allowed = {kills.state(folder, operation), kills.state(calm, operation)}
    work = kills.command(place, operation, folder)
    limit = rng.choice((700, 900, 1200, 2000, 3000, 5000, 10_000, 20_000))  # The error fits.

    def limited() -> int | None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return work()

    ended = child.run(limited, place / "logs")
    verdict, detail = of_run(ended)
    detail = f"{name}, {limit} bytes: {detail}" if detail else ""
    if verdict in ("right", "clear error"):
        again = child.run(work, place / "logs")
        done = again.code == 0 or (bool(operation.done) and operation.done in again.err)
        problem = "" if done else f"not finished afterwards: {again.err[:200]}"
        if kills.state(folder, operation) not in allowed:
            problem = f"{operation.whole} is neither old nor new"
        problem = problem or differences(content(folder), content(calm))
        problem = problem or ", ".join(left_over(folder))
        if problem:
            verdict, detail = "wrong", f"{name}, {limit} bytes: {problem}"
    shutil.rmtree(folder, ignore_errors=True)
    return Row(FULL, number, verdict, detail)


def denied(place: Path, number: int, seed: int) -> Row:
    """The run is nobody's, and what it would write is root's. Only root can try this."""
    names = (*OPERATIONS, *SLOW)
    operation, folder = kills.operations()[names[number]], place / "runs" / f"denied-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    kills.lay_out(place, operation, folder)
    (folder / "work").mkdir(exist_ok=True)
    before, work = content(folder), kills.command(place, operation, folder)

    def as_nobody() -> int | None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    ended = child.run(as_nobody, place / "logs")
    verdict, detail = of_run(ended)
    if verdict == "right" and os.geteuid() == 0:
        verdict, detail = "wrong", "was done all the same"
    if content(folder) != before:
        verdict, detail = "wrong", differences(content(folder), before)
    shutil.rmtree(folder, ignore_errors=True)
    return Row(DENIED, number, verdict, f"{names[number]}: {detail}")


CASES: dict[str, tuple[int, Callable[[Path, int, int], Row]]] = {
    FULL: (100, full),
    DENIED: (len(OPERATIONS) + len(SLOW) if os.geteuid() == 0 else 0, denied),
}
