"""Several processes at the same workdir, bank or model: nothing that any of them did is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.torture import child, kills
from benchmarks.torture.child import Ended
from benchmarks.torture.content import content, differences, left_over
from benchmarks.torture.verdicts import Row, Verdict, of_run

Work = Callable[[], int | None]


def jobs(place: Path, number: int, seed: int) -> Row:
    """Two main jobs in one workdir, the second some time after the first."""
    name = "two jobs, one workdir"
    operation = kills.operations()["job"]
    folder = _folder(place, name, number)
    wanted = content(kills.reference(place, operation) / "place")
    work = kills.command(place, operation, folder)
    late = random.Random(f"{seed} {name} {number}").uniform(0, 4)
    ended = _together(place, [work, work], late)
    bad = _bad(ended)
    if bad:
        return Row(name, number, *bad)
    if all(one.code != 0 for one in ended):
        return Row(name, number, "wrong", f"none went through: {ended[0].err[:200]}")
    again = child.run(work, place / "logs")
    problem = differences(content(folder), wanted) or ", ".join(left_over(folder))
    if again.code != 0 or problem:
        return Row(name, number, "wrong", problem or again.err[:300])
    return _right(name, number, folder)


def bank_while_job(place: Path, number: int, seed: int) -> Row:
    """Another bank is merged into the workdir's own while the main job works."""
    name = "bank merge during a job"
    folder = _folder(place, name, number)
    shutil.copytree(place / "starts" / "banked" / "other", folder / "other")
    (folder / "work").mkdir()
    job = kills.command(place, kills.operations()["job"], folder)
    merge = kills.bank(place, folder, "merge", other=str(folder / "other"))
    merge |= {"bank": str(folder / "work" / "bank")}
    rival = child.command(merge, folder / "scratch", place / "logs")
    late = random.Random(f"{seed} {name} {number}").uniform(0, 6)
    ended = _together(place, [job, rival], late)
    bad = _bad(ended)
    if bad:
        return Row(name, number, *bad)
    sources = _sources(folder / "work" / "bank")
    wanted = {r["source"] for r in kills.world.REQUESTS} if ended[0].code == 0 else set()
    wanted |= {"goldfish"} if ended[1].code == 0 else set()
    if wanted - sources:
        return Row(name, number, "wrong", f"lost: {sorted(wanted - sources)}")
    return _right(name, number, folder)


def banks(place: Path, number: int, seed: int) -> Row:
    """Six processes change one bank at once: merge, remove, strength, list."""
    name = "six processes, one bank"
    rng = random.Random(f"{seed} {name} {number}")
    folder = _folder(place, name, number)
    shutil.copytree(place / "starts" / "banked", folder, dirs_exist_ok=True)
    tasks = [
        kills.bank(place, folder, "merge", other=str(folder / "other")),
        kills.bank(place, folder, "remove", names=("dog",)),
        kills.bank(place, folder, "remove", names=("tench",)),
        kills.bank(place, folder, "strength", names=("snow",), strength=0.5),
        kills.bank(place, folder, "list"),
        kills.bank(place, folder, "merge", other=str(folder / "other")),
    ]
    rng.shuffle(tasks)
    works = [child.command(one, folder / f"work{i}", place / "logs") for i, one in enumerate(tasks)]
    ended = _together(place, works, rng.uniform(0, 0.02))
    bad = _bad(ended)
    failed = [one.err[:200] for one in ended if one.code != 0]
    if bad:
        return Row(name, number, *bad)
    if failed:
        return Row(name, number, "wrong", f"refused: {failed[0]}")
    sources = _sources(folder / "bank")
    if sources != {"great white shark", "snow", "goldfish"} or left_over(folder):
        return Row(name, number, "wrong", f"{sorted(sources)}, {left_over(folder)}")
    return _right(name, number, folder)


def models(place: Path, number: int, seed: int) -> Row:
    """Apply and undo on one model folder at once."""
    name = "apply and undo at once"
    rng = random.Random(f"{seed} {name} {number}")
    folder = _folder(place, name, number)
    start = rng.choice(("model", "applied"))
    shutil.copytree(place / "starts" / start, folder, dirs_exist_ok=True)
    states = {kills.weights(place / "starts" / one / "model") for one in ("model", "applied")}
    works = [
        child.command(kills.edit_file(place, folder, one), folder / "work", place / "logs")
        for one in rng.sample(("apply", "undo", "apply", "undo"), 4)
    ]
    ended = _together(place, works, rng.uniform(0, 0.03))
    bad = _bad(ended)
    if bad:
        return Row(name, number, *bad)
    if kills.weights(folder / "model") not in states:
        return Row(name, number, "wrong", "the weights are neither the old nor the new ones")
    last = child.command(kills.edit_file(place, folder, "undo"), folder / "work", place / "logs")
    child.run(last, place / "logs")
    problem = differences(content(folder / "model"), content(place / "starts" / "model" / "model"))
    return Row(name, number, "wrong", problem) if problem else _right(name, number, folder)


CASES: dict[str, tuple[int, Callable[[Path, int, int], Row]]] = {
    "two jobs, one workdir": (8, jobs),
    "bank merge during a job": (12, bank_while_job),
    "six processes, one bank": (100, banks),
    "apply and undo at once": (100, models),
}
"""How many runs of each."""


def _together(place: Path, works: Sequence[Work], late: float) -> list[Ended]:
    """Starts one after the other, `late` seconds apart."""
    running = []
    for work in works:
        running.append(child.start(work, place / "logs"))
        time.sleep(late)
    return [child.ended(one) for one in running]


def _bad(ended: Sequence[Ended]) -> tuple[Verdict, str] | None:
    """The first that did not end as a command may."""
    verdicts = [of_run(one) for one in ended]
    return next((one for one in verdicts if one[0] not in ("right", "clear error")), None)


def _sources(bank: Path) -> set[str]:
    rows = json.loads((bank / "concepts.json").read_bytes())["concepts"]
    return {row["request"]["source"] for row in rows}


def _folder(place: Path, name: str, number: int) -> Path:
    folder = place / "runs" / f"{name.replace(' ', '_')}-{number}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _right(name: str, number: int, folder: Path) -> Row:
    shutil.rmtree(folder)
    return Row(name, number, "right")
