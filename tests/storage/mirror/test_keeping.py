"""A mirror beside a run: it is complete at the end, and its errors end nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emcid_jax.storage.mirror import keeping
from emcid_jax.storage.mirror.joining import begin
from emcid_jax.storage.mirror.keeping import kept
from emcid_jax.storage.mirror.remote_folder import RemoteFolder

Write = Callable[[Path, Mapping[str, bytes]], None]
Read = Callable[[Path], dict[str, bytes]]
STATE = {"config.json": b"{}", "bank/a": b"memory"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PAUSE", 0.01)
    monkeypatch.setattr(keeping, "LONGEST_PAUSE", 0.01)


def test_what_is_finished_is_there_before_the_run_ends(
    url: str, new: Callable[[], Path], write: Write, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, other, third = new(), new(), new()
    there = threading.Event()
    real = keeping.copied

    def copied(*arguments: Any) -> Any:
        found = real(*arguments)
        if set(found.files) == set(STATE):
            there.set()
        return found

    monkeypatch.setattr(keeping, "copied", copied)
    with kept(url, workdir):
        write(workdir, STATE)
        assert there.wait(60)
        begin(url, other)  # As if this machine were gone.
        assert read(other) == STATE
    with kept(url, third):
        write(third, STATE | {"bank/b": b"last"})
    begin(url, workdir := new())
    assert read(workdir) == STATE | {"bank/b": b"last"}


def test_a_run_that_fails_leaves_all_that_is_finished(
    url: str, new: Callable[[], Path], write: Write, read: Read
) -> None:
    workdir, other = new(), new()

    def run() -> None:
        with kept(url, workdir):
            write(workdir, STATE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    begin(url, other)
    assert read(other) == STATE


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", ["put", "move", "read"])
def test_errors_are_tried_again(
    call: str,
    done: bool,
    url: str,
    new: Callable[[], Path],
    write: Write,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether or not the call was done before the answer was lost."""
    workdir, other, left = new(), new(), 3
    real = getattr(RemoteFolder, call)

    def fails(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or done:
            found = real(*arguments)
        if left >= 0:
            raise OSError("no answer")
        return found

    write(workdir, {"config.json": b"first", "bank/b": b"goes"})
    with kept(url, workdir):
        pass
    with kept(url, workdir):
        monkeypatch.setattr(RemoteFolder, call, fails)
        write(workdir, STATE)
    monkeypatch.setattr(RemoteFolder, call, real)
    assert "OSError: no answer" in caplog.text
    assert "lacks" not in caplog.text
    begin(url, other)
    assert read(other) == STATE


def test_a_manifest_whose_answer_was_lost_is_gone_on_from(
    url: str, new: Callable[[], Path], write: Write, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it names must not be written over, though nobody was told that it is there."""
    workdir, other = new(), new()
    write(workdir, {"config.json": b"1"})
    with kept(url, workdir):
        pass
    move, put, lost = RemoteFolder.move, RemoteFolder.put, False

    def without_answer(self: RemoteFolder, name: str, target: str) -> None:
        nonlocal lost
        move(self, name, target)
        if not lost:
            lost = True
            write(workdir, {"config.json": b"3"})
            raise OSError("no answer")

    def last(self: RemoteFolder, source: Path | bytes, name: str) -> None:
        put(self, source, name)
        if source == b"3":
            begin(url, other)  # As if this machine were gone.

    monkeypatch.setattr(RemoteFolder, "move", without_answer)
    monkeypatch.setattr(RemoteFolder, "put", last)
    with kept(url, workdir):
        write(workdir, {"config.json": b"2"})
    assert lost
    assert read(other) == {"config.json": b"2"}


def test_what_cannot_be_copied_is_said_and_the_run_ends_well(
    url: str,
    new: Callable[[], Path],
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no answer")

    workdir = new()
    with kept(url, workdir):
        monkeypatch.setattr(RemoteFolder, "put", fails)
        write(workdir, STATE)
    (last,) = (one.getMessage() for one in caplog.records if one.levelname == "ERROR")
    assert last.startswith(f"config.run.mirror is {url!r}, which lacks 2 files of {workdir} (")
    assert last.endswith("; give the same command again")


def test_another_machine_that_went_on_is_told_once(
    url: str, new: Callable[[], Path], write: Write, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    workdir, other, third = new(), new(), new()
    write(workdir, STATE)
    with kept(url, workdir):
        pass
    with kept(url, workdir):
        begin(url, other)
        write(workdir, {"config.json": b"mine"})
    assert caplog.text.count("is no longer kept") == 1
    begin(url, third)
    assert read(third) == STATE
