"""`python -m benchmarks.torture`: kills, mutated inputs, rivals and hostile names; prints a table.

A second call with the same workdir goes on; a row is never done twice. Exit code 1 if anything
failed. See docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.torture import (
    batches,
    child,
    hostile,
    inputs,
    kills,
    overrides,
    refusals,
    together,
    verdicts,
)
from benchmarks.torture.verdicts import Row

OVERRIDES = 1000
"""Command lines among 10,000 inputs; the kinds of `inputs` share out the rest."""
BATCH = 50
Step = Callable[[], list[Row]]
PARTS = ("kills", "inputs", "together", "refusals", "hostile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and not done yet. Returns 1 if anything failed."""
    options = _parse(arguments)
    place: Path = options.workdir
    place.mkdir(parents=True, exist_ok=True)
    child.warm_up(place / "compiled")
    killed = [name for name in kills.operations() if _is_wanted(options, name, "kills")]
    rivals = {"together", "hostile"} & set(options.parts)
    if "together" in options.parts:
        killed.append("job")
    if "refusals" in options.parts:
        killed += [*refusals.OPERATIONS, *refusals.SLOW]
    kills.prepare(place, killed, ("banked", "solved", "model", "applied") if rivals else ())
    rows = sorted(place.glob("rows-*.jsonl"))
    done = {(row.kind, row.case) for row in verdicts.read(rows)}
    steps = list(_steps(options, done))
    workers = [_worker(steps[i :: options.jobs], place, i) for i in range(options.jobs)]
    for worker in workers:
        os.waitpid(worker, 0)
    found = verdicts.read(sorted(place.glob("rows-*.jsonl")))
    about = {"seed": options.seed, "kills": options.kills, "inputs": options.inputs}
    _report(found, about, options.output)
    bad = [row for row in found if row.verdict not in ("right", "clear error")]
    for row in bad[:40]:
        print(f"{row.kind} {row.case}: {row.verdict}: {row.detail[:200]!a}")
    return int(bool(bad))


def _steps(options: argparse.Namespace, done: set[tuple[str, int]]) -> Iterator[Step]:
    """Everything that is left to do, in portions."""
    place, seed = options.workdir, options.seed

    def single(case: Callable[..., Row], *given: object) -> Step:
        return lambda: [case(place, *given, seed)]

    def wanted(kind: str, part: str) -> bool:
        return _is_wanted(options, kind, part)

    def left(kind: str, count: int) -> list[int]:
        return [number for number in range(count) if (kind, number) not in done]

    for kind in inputs.KINDS if "inputs" in options.parts else ():
        if wanted(kind.name, "inputs"):
            open_ones = left(kind.name, round(kind.share * options.inputs / 10_000))
            for at in range(0, len(open_ones), BATCH):
                portion = open_ones[at : at + BATCH]
                yield lambda k=kind, p=portion: batches.run(k, p, place, seed, place / "failed")
    if wanted(overrides.KIND, "inputs"):
        for number in left(overrides.KIND, round(OVERRIDES * options.inputs / 10_000)):
            yield single(overrides.case, number)
    names = [name for name in kills.operations() if wanted(name, "kills")]
    for number in range(options.kills):  # In turns, so that all get on alike.
        for name in names:
            if number < _share(name, options.kills) and (name, number) not in done:
                yield single(kills.case, name, number)
    scale = min(1.0, options.inputs / 10_000)
    for part, cases in (
        ("together", together.CASES),
        ("refusals", refusals.CASES),
        ("hostile", hostile.CASES),
    ):
        for kind, (count, case) in cases.items():
            for number in left(kind, math.ceil(count * scale)) if wanted(kind, part) else ():
                yield single(case, number)


def _is_wanted(options: argparse.Namespace, kind: str, part: str) -> bool:
    return part in options.parts and (not options.kinds or kind in options.kinds)


def _share(name: str, count: int) -> int:
    """The operations of a command share its kills."""
    return math.ceil(count * kills.SHARES[name])


def _worker(steps: Sequence[Step], place: Path, number: int) -> int:
    """A forked process that works these off and writes their rows."""
    worker = os.fork()
    if worker:
        return worker
    try:
        file = place / f"rows-{number}.jsonl"
        for i, step in enumerate(steps):
            for row in step():
                verdicts.write(file, row)
            if i % 20 == 0:
                print(f"worker {number}: {i} of {len(steps)} portions", file=sys.stderr, flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _report(rows: Sequence[Row], about: dict[str, int], output: Path | None) -> None:
    print(verdicts.table(rows), flush=True)
    if output is None:
        return
    counts = {
        kind: {v: sum(r.kind == kind and r.verdict == v for r in rows) for v in verdicts.VERDICTS}
        for kind in dict.fromkeys(row.kind for row in rows)
    }
    failures = [r._asdict() for r in rows if r.verdict not in ("right", "clear error")]
    text = {**about, "date": time.strftime("%Y-%m-%d"), "counts": counts, "failures": failures}
    output.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--kinds", nargs="+", default=[], help="only these, as printed")
    parser.add_argument("--kills", type=int, default=100, help="kills of each command")
    parser.add_argument("--inputs", type=int, default=10_000, help="mutated inputs")
    parser.add_argument("--seed", type=int, default=0, help="decides every case")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--workdir", type=Path, default=Path("runs/torture"))
    parser.add_argument("--output", type=Path, help="JSON file of the table")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"{unknown[0]} is no part; choose of {', '.join(PARTS)}")
    options.workdir = options.workdir.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
