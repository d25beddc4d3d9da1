"""A snapshot is the workdir at one moment, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from emcid_jax.storage.mirror import snapshot

Write = Callable[[Path, Mapping[str, bytes]], None]


def test_a_file_that_comes_between_two_looks_is_in_it(
    new: Callable[[], Path], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that is at the list after it was at the memories sees a list without a memory."""
    workdir = new()
    write(workdir, {"bank/a": b"a", "config.json": b"a"})
    look, looks = snapshot.files_in, 0

    def slow(folder: Path) -> dict[str, snapshot.Stat]:
        nonlocal looks
        looks += 1
        found = look(folder)
        if looks == 1:  # Later than the memories' folder was read, and before the list was.
            write(workdir, {"bank/a": b"a", "bank/b": b"b", "config.json": b"a b"})
            found["config.json"] = look(folder)["config.json"]
        return found

    monkeypatch.setattr(snapshot, "files_in", slow)
    taken = snapshot.take(workdir, {})
    assert set(taken.files) == {"bank/a", "bank/b", "config.json"}
    assert taken.contents == {"bank/a": b"a", "bank/b": b"b", "config.json": b"a b"}


def test_known_files_are_not_read_again(new: Callable[[], Path], write: Write) -> None:
    workdir = new()
    write(workdir, {"bank/a": b"a", "bank/b": b"b"})
    known: snapshot.Hashes = {}
    taken = snapshot.take(workdir, known)
    for name in taken.files:
        snapshot.hash_in(taken, workdir, name, known)
    write(workdir, {"bank/a": b"a", "bank/b": b"B"})
    assert snapshot.take(workdir, known).contents == {"bank/b": b"B"}


def test_appended_lines_are_seen(new: Callable[[], Path], write: Write) -> None:
    workdir = new()
    write(workdir, {"log.jsonl": b"1\n"})
    known: snapshot.Hashes = {}
    first = snapshot.hash_in(snapshot.take(workdir, known), workdir, "log.jsonl", known)
    with (workdir / "log.jsonl").open("ab") as file:
        file.write(b"2\n")
    second = snapshot.hash_in(snapshot.take(workdir, known), workdir, "log.jsonl", known)
    assert first != second
