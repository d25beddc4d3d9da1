"""Runs killed at random moments and given again: nothing is lost, half-written or different."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from benchmarks.torture import child, world
from benchmarks.torture.child import Ended, Kill
from benchmarks.torture.content import content, differences, left_over
from benchmarks.torture.verdicts import Row, Verdict, of_run

SHARES = {
    "job": 0.75, "job, judged": 0.2, "job, image loss": 0.05,
    "bank add": 0.2, "bank remove": 0.3, "bank merge": 0.3, "bank solve": 0.2,
    "edit_file apply": 0.4, "edit_file undo": 0.4, "edit_file folder": 0.2,
}  # fmt: skip
"""What part of a command's kills each operation gets: the main job, `bank`, `edit_file`."""
Result = tuple[Verdict, str]
"""Verdict and detail."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """A command, the folder it starts from, and what it may leave at any moment."""

    name: str
    settings: Callable[[Path, Path], dict[str, Any]]
    """Settings from the world and the folder that this run works in (`work`, `bank`, `model`)."""
    start: str = ""
    """Folder of the world's `starts` that is copied first; empty: nothing lies there."""
    whole: str = ""
    """A folder of the place that is the old one or the new one at any moment."""
    done: str = ""
    """What the command may answer, given again after it was finished."""


def operations() -> dict[str, Operation]:
    """All that are killed, by name."""
    found = [
        Operation("job", lambda w, p: job(w), whole="work/text_encoder"),
        Operation("job, judged", lambda w, p: job(w, judged=True), whole="work/text_encoder"),
        Operation("job, image loss", lambda w, p: job(w, images=True), whole="work/text_encoder"),
        Operation("bank add", lambda w, p: bank(w, p, "add"), "banked", done="0 of 2"),
        Operation(
            "bank remove",
            lambda w, p: bank(w, p, "remove", names=("dog", "snow")),
            "banked",
            done="is not in the bank",
        ),
        Operation("bank merge", lambda w, p: bank(w, p, "merge", other=str(p / "other")), "banked"),
        Operation("bank solve", lambda w, p: bank(w, p, "solve"), "solved", "work/text_encoder"),
        Operation(
            "edit_file apply",
            lambda w, p: edit_file(w, p, "apply"),
            "model",
            "model/text_encoder/model.safetensors",
            "is edited already",
        ),
        Operation(
            "edit_file undo",
            lambda w, p: edit_file(w, p, "undo"),
            "applied",
            "model/text_encoder/model.safetensors",
            "there is nothing to undo",
        ),
        Operation("edit_file folder", lambda w, p: edit_file(w, p, "folder"), "", "work/model",
                  "is there already"),
    ]  # fmt: skip
    return {one.name: one for one in found}


def job(place: Path, *, judged: bool = False, images: bool = False) -> dict[str, Any]:
    """Settings of the main job; the image loss takes long to trace."""
    values = world.settings(place, "edit")
    values["stage_one"] |= {"concept_batch": 2}
    if not images:
        values["stage_one"]["objective"] = "text-only"
    values["evaluation"]["enabled"] = judged
    return values


def bank(place: Path, folder: Path, operation: str, **fields: Any) -> dict[str, Any]:
    """Settings of an operation on the bank in `folder`."""
    values = world.settings(place, "bank", operation=operation, bank=str(folder / "bank"), **fields)
    values["stage_one"] |= {"objective": "text-only", "concept_batch": 2}
    asked = str(place / "more.json") if operation == "add" else ""
    return values | {"requests": {"path": asked}}


def edit_file(place: Path, folder: Path, operation: str) -> dict[str, Any]:
    """Settings of an operation with the world's edit file."""
    model = folder / "model" if operation in ("apply", "undo") else place / "model"
    return world.settings(
        place,
        "edit_file",
        operation=operation,
        edit=str(place / "starts" / "job" / "edit.safetensors"),
        model={"path": str(model)},
    )


def prepare(place: Path, names: Collection[str], starts: Collection[str]) -> None:
    """Makes the world, what these operations and starts need, and the undisturbed results."""
    if not (place / "shapes.json").exists():
        _checked(child.run(lambda: _make_world(place), place / "logs"), "the world")
    wanted = [one for one in operations().values() if one.name in names]
    needed = {"job", *starts, *(one.start for one in wanted if one.start)}
    for name in [name for name in _STARTS if name in needed]:
        folder = place / "starts" / name
        if not (place / "starts" / f"{name}.ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _STARTS[name](place, folder)
            (place / "starts" / f"{name}.ready").touch()
    for operation in wanted:
        folder = reference(place, operation)
        if not (folder / "operations").exists():
            shutil.rmtree(folder, ignore_errors=True)
            lay_out(place, operation, folder / "place")
            work = command(place, operation, folder / "place")
            ended = child.run(work, place / "logs", count=True, limit=600)
            _checked(ended, operation.name)
            (folder / "seconds").write_text(str(ended.seconds))
            (folder / "operations").write_text(str(ended.operations))


def _start_banked(place: Path, folder: Path) -> None:
    """A bank, and another with one concept more."""
    shutil.copytree(place / "starts" / "job" / "bank", folder / "bank")
    world.write_manifest(place / "other.json", [{"source": "goldfish", "dest": "nurse", "seed": 4}])
    add = bank(place, folder / "others", "add") | {"requests": {"path": str(place / "other.json")}}
    _run(place, add, place / "scratch")
    (folder / "others" / "bank").rename(folder / "other")
    (folder / "others").rmdir()


def _start_solved(place: Path, folder: Path) -> None:
    """A bank that was solved, and changed since: the next solve replaces an older text encoder."""
    shutil.copytree(place / "starts" / "job" / "bank", folder / "bank")
    _run(place, bank(place, folder, "solve"), folder / "work")
    _run(place, bank(place, folder, "remove", names=("snow",)), place / "scratch")


def _start_model(place: Path, folder: Path) -> None:
    shutil.copytree(place / "model", folder / "model")


def _start_applied(place: Path, folder: Path) -> None:
    _start_model(place, folder)
    _run(place, edit_file(place, folder, "apply"), place / "scratch")


_STARTS: dict[str, Callable[[Path, Path], None]] = {
    "job": lambda place, folder: _run(place, job(place), folder),
    "banked": _start_banked,
    "solved": _start_solved,
    "model": _start_model,
    "applied": _start_applied,
}
"""What operations start from, each made from those before it."""


def case(place: Path, name: str, number: int, seed: int) -> Row:
    """Kills one run, once or twice, and gives it again to the end."""
    operation = operations()[name]
    calm = reference(place, operation)
    wanted = content(calm / "place")
    seconds = float((calm / "seconds").read_text())
    steps = int((calm / "operations").read_text())
    rng = random.Random(f"{seed} {name} {number}")
    folder = place / "runs" / f"{name.replace(' ', '_')}-{number}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(place, operation, folder)
    allowed = {state(folder, operation), state(calm / "place", operation)}
    work = command(place, operation, folder)
    told = []
    for _ in range(1 + (rng.random() < 0.3)):
        how = _drawn(rng, seconds, steps)
        moment = how.operation or f"{how.seconds:.2f} s"
        told.append(f"{signal.Signals(how.number).name} at {moment}")
        ended = child.run(work, place / "logs", kill=how)
        refused = not operation.done or operation.done not in ended.err
        if ended.code not in (-9, -15, 143, 0) and refused:
            return Row(name, number, *_failed(ended, told))
        if state(folder, operation) not in allowed:
            return Row(name, number, "wrong", f"{told}: {operation.whole} is neither old nor new")
    ended = child.run(work, place / "logs")
    again = bool(operation.done) and operation.done in ended.err
    if ended.code != 0 and not (ended.code == 2 and again):
        return Row(name, number, *_failed(ended, told))
    problem = differences(content(folder), wanted) or ", ".join(left_over(folder))
    if problem:
        return Row(name, number, "wrong", f"{told}: {problem}")
    shutil.rmtree(folder)
    return Row(name, number, "right")


def _make_world(place: Path) -> None:
    world.make_inputs(place)
    world.make_model(place / "model")
    world.write_shapes(place / "model", place / "shapes.json")


def weights(model: Path) -> str:
    """Hash of the text encoder's weights."""
    file = model / "text_encoder" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def command(place: Path, operation: Operation, folder: Path) -> Callable[[], int | None]:
    """The operation, working in `folder`."""
    return child.command(operation.settings(place, folder), folder / "work", place / "logs")


def reference(place: Path, operation: Operation) -> Path:
    """Folder of its undisturbed run: `place`, `seconds`, `operations`."""
    return place / "undisturbed" / operation.name.replace(" ", "_")


def lay_out(place: Path, operation: Operation, folder: Path) -> None:
    """Makes the folder with what the operation starts from."""
    folder.mkdir(parents=True)
    if operation.start:
        shutil.copytree(place / "starts" / operation.start, folder, dirs_exist_ok=True)


def state(folder: Path, operation: Operation) -> str:
    """What lies at the folder or file that must never be a mixture."""
    path = folder / operation.whole
    if not operation.whole or not path.exists():
        return ""
    return str(content(path)) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def _drawn(rng: random.Random, seconds: float, steps: int) -> Kill:
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    if rng.random() < 0.5:
        return Kill(number, seconds=rng.uniform(0, seconds))
    return Kill(number, operation=rng.randint(1, steps))


def _run(place: Path, values: dict[str, Any], workdir: Path) -> None:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    work = child.command(values, workdir, place / "logs")
    _checked(child.run(work, place / "logs", limit=600), str(workdir))


def _checked(ended: Ended, what: str) -> None:
    if ended.code != 0:
        raise RuntimeError(f"{what}: exit code {ended.code}\n{ended.err}")


def _failed(ended: Ended, told: list[str]) -> Result:
    """A refusal of what was killed is a loss, too."""
    verdict, detail = of_run(ended)
    return ("wrong" if verdict in ("right", "clear error") else verdict), f"{told}: {detail}"
