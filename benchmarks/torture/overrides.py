"""Settings on the command line: what is accepted is what the text says, and nothing more."""

from __future__ import annotations

import ast
import dataclasses
import random
from pathlib import Path
from typing import Any

from benchmarks.torture import child, world
from benchmarks.torture.verdicts import Row, of_run
from benchmarks.torture.words import STRANGE, TEXTS

KIND = "overrides"


def case(place: Path, number: int, seed: int) -> Row:
    """Gives main one or two overrides; its task only tells its settings."""
    rng = random.Random(f"{seed} {KIND} {number}")
    given = [_override(rng) for _ in range(rng.choice((1, 1, 2)))]
    arguments = [f"--{name}={text}" for name, text in given]
    told = place / "logs" / f"told-{number}.json"
    values = world.settings(place, "edit")
    main = child.command(values, place / "nowhere", place / "logs", *arguments)

    def work() -> int | None:
        from emcid_jax.tasks import edit

        edit.run = lambda config, workdir: (
            told.write_text(repr(dataclasses.asdict(config))) and None
        )
        return main()

    ended = child.run(work, place / "logs", limit=60)
    verdict, detail = of_run(ended)
    if verdict == "right":
        found = ast.literal_eval(told.read_text("utf-8", "surrogateescape"))
        detail = _differs(_plain(given), found, place)
        verdict = "wrong" if detail else "right"
    told.unlink(missing_ok=True)
    return Row(KIND, number, verdict, f"{arguments!r:.200}: {detail}" if detail else "")


def _override(rng: random.Random) -> tuple[str, str]:
    fields = [name for name, _ in _flat(_defaults())]
    name = rng.choice(STRANGE) if rng.random() < 0.1 else f"config.{rng.choice(fields)}"
    return name, rng.choice(TEXTS)


def _differs(given: dict[str, str], found: dict[str, Any], place: Path) -> str:
    """What main understood that the texts do not say."""
    read = dict(_flat(found))
    wanted = dict(_flat(_defaults())) | dict(_flat(world.settings(place, "edit")))
    for name, text in given.items():
        if name not in read:
            return f"{name} was taken, but is no setting"
        wanted[name] = _meant(text, dict(_flat(_defaults()))[name])
    for name, value in read.items():
        if repr(_settled(value)) != repr(_settled(wanted[name])):
            return f"{name} is {value!r}, should be {wanted[name]!r}"
    return ""


def _meant(text: str, default: Any) -> Any:
    """What a text means where `default` stands."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), f"? {text}")
    if isinstance(default, int):
        return int(text, 0)
    if isinstance(default, float):
        return float(text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _plain(given: list[tuple[str, str]]) -> dict[str, str]:
    """The last text of each setting."""
    return {name.removeprefix("config."): text for name, text in given}


def _settled(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_settled, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _defaults() -> dict[str, Any]:
    from emcid_jax.config import EditConfig

    return dataclasses.asdict(EditConfig())


def _flat(tree: dict[str, Any], prefix: str = "") -> Any:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
