"""Many inputs in one forked process, one after the other; it is replaced when one takes it down."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.torture.child import CAGE, MEMORY, Clock, _address_space
from benchmarks.torture.inputs import Kind
from benchmarks.torture.verdicts import Row, Verdict, bad_message

LIMIT = 60.0
"""Seconds that reading one input may take on a busy machine."""


def run(kind: Kind, numbers: Sequence[int], place: Path, seed: int, keep: Path) -> list[Row]:
    """Tries these inputs.

    Args:
        kind: of which kind.
        numbers: which; with the seed they decide everything.
        place: the world.
        seed: of all.
        keep: inputs that failed are kept here.
    """
    rows: list[Row] = []
    left = list(numbers)
    while left:
        with tempfile.NamedTemporaryFile(dir=place, suffix=".rows") as log:
            hung, memory = _forked(kind, left, place, seed, keep, Path(log.name))
            done = [json.loads(line) for line in log.read().decode().splitlines()]
        new = [Row(**one) for one in done if "verdict" in one]
        rows += new
        left = left[len(new) :]
        if len(done) > 2 * len(new):  # One was begun and did not end.
            reason: Verdict = "hang" if hung else "memory" if memory > MEMORY else "traceback"
            rows.append(Row(kind.name, left.pop(0), reason, "the process died"))
    return rows


def attempt(kind: Kind, number: int, place: Path, seed: int, keep: Path) -> Row:
    """Tries one input in this process."""
    from emcid_jax import main

    folder = Path(tempfile.mkdtemp(dir=place, prefix="input-"))
    rng, told = random.Random(f"{seed} {kind.name} {number}"), io.StringIO()
    stderr, sys.stderr = sys.stderr, told
    verdict: Verdict
    try:
        detail = kind.attempt(rng, place, folder)
        verdict = "wrong" if detail else "right"
    except Exception as error:
        if main.answer(error, "--workdir") is None:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            verdict, detail = "traceback", f"{type(error).__name__} {where}: {str(error)[:200]}"
        else:
            detail = bad_message(told.getvalue())
            verdict = "traceback" if detail else "clear error"
    finally:
        sys.stderr = stderr
    if verdict not in ("right", "clear error"):
        kept = keep / f"{kind.name.replace(' ', '_')}-{number}"
        shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return Row(kind.name, number, verdict, detail)


def _forked(
    kind: Kind, numbers: Sequence[int], place: Path, seed: int, keep: Path, log: Path
) -> tuple[bool, int]:
    """Whether it hung, and most resident bytes."""
    child = os.fork()
    if child == 0:
        try:
            _work(kind, numbers, place, seed, keep, log)
        finally:
            os._exit(0)
    size, clock = -1, Clock()
    while True:
        process, _, usage = os.wait4(child, os.WNOHANG)
        if process:
            return False, usage.ru_maxrss * 1024
        if log.stat().st_size != size:
            size, clock = log.stat().st_size, Clock()
        if clock.tick() > LIMIT:
            os.kill(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return True, usage.ru_maxrss * 1024
        time.sleep(0.02)


def _work(
    kind: Kind, numbers: Sequence[int], place: Path, seed: int, keep: Path, log: Path
) -> None:
    limit = _address_space() + CAGE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    with log.open("ab", buffering=0) as file:
        for number in numbers:
            file.write(json.dumps({"begun": number}).encode() + b"\n")
            row = attempt(kind, number, place, seed, keep)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
                row = row._replace(verdict="memory")
            file.write(json.dumps(row._asdict()).encode() + b"\n")
            if row.verdict == "memory":
                return
