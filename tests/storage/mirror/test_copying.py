"""A mirror that is cut anywhere holds a state that the workdir had, and the next run mends it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emcid_jax.storage.files import replacing
from emcid_jax.storage.mirror import copying, manifest, snapshot
from emcid_jax.storage.mirror.copying import Known, LostError, copied
from emcid_jax.storage.mirror.joining import begin
from emcid_jax.storage.mirror.remote_folder import RemoteFolder, open_remote
from emcid_jax.storage.mirror.snapshot import ChangedError

Write = Callable[[Path, Mapping[str, bytes]], None]
Read = Callable[[Path], dict[str, bytes]]
STATES: list[dict[str, bytes]] = [
    {"config.json": b"settings", "bank/a": b"memory a", "bank/list": b"a", "log.jsonl": b"1\n"},
    {"config.json": b"settings!", "bank/a": b"memory a", "bank/b": b"memory b",
     "bank/list": b"a b", "log.jsonl": b"1\n2\n", "bank/steps/1/data": b"sums"},
    {"config.json": b"settings!", "bank/b": b"memory b", "bank/list": b"b",
     "log.jsonl": b"1\n2\n3\n", "bank/steps/2/data": b"more sums", "edit-1": b"", "edit-2": b"xy"},
]  # fmt: skip
"""What a workdir holds one after another: files come, are replaced and go."""


class Killed(BaseException):
    """The process is no more."""


class Dying:
    """A file system on which the process is killed in the middle of one of the calls that change
    something."""

    def __init__(self, system: Any, last: int) -> None:
        self.system, self.left = system, last

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.system, name)
        if name not in ("pipe_file", "put_file", "mv", "rm_file"):
            return real

        def call(first: str, *rest: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                return real(first, *rest)
            if name == "pipe_file":  # Half a file.
                self.system.pipe_file(first, rest[0][: len(rest[0]) // 2])
            elif name == "put_file":
                content = Path(first).read_bytes()
                self.system.pipe_file(rest[0], content[: len(content) // 2])
            elif name == "mv" and ".mirror.json" not in first:  # A copy, and both are there.
                self.system.cp_file(first, *rest)
            raise Killed

        return call


def dying(remote: RemoteFolder, last: int) -> RemoteFolder:
    return RemoteFolder(remote.url, Dying(remote.system, last), remote.root)


def mirror(workdir: Path, url: str) -> None:
    remote, now = begin(url, workdir)
    copied(remote, workdir, now, Known({}, {}))


@pytest.mark.parametrize("memory", [snapshot.MEMORY, 4])
def test_cut_anywhere_it_is_one_of_the_states_and_is_mended(
    memory: int,
    url: str,
    new: Callable[[], Path],
    write: Write,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "MEMORY", memory)
    for last in itertools.count():
        there = f"{url}-{last}"
        workdir, done = new(), 0
        remote, now = begin(there, workdir)
        broken, known = dying(remote, last), Known({}, {})
        try:
            for state in STATES:
                write(workdir, state)
                now = copied(broken, workdir, now, known)
                done += 1
        except Killed:
            pass
        if last % 2:  # The same machine comes back: its workdir counts.
            mirror(workdir, there)
            state = read(workdir)
            assert {name: read_plain(there).get(name) for name in state} == state
            workdir = new()
            begin(there, workdir)
            assert read(workdir) == state
        else:  # Another machine starts from the mirror, with nothing but the URL.
            workdir = new()
            begin(there, workdir)
            assert read(workdir) in [{}, *STATES][done : done + 2]
        # It ends where the first would have.
        for state in STATES:
            write(workdir, state)
            mirror(workdir, there)
        third = new()
        begin(there, third)
        assert read(third) == STATES[-1]
        if done == len(STATES):
            assert last > 20
            assert read_plain(there) == STATES[-1]
            break


def read_plain(url: str) -> dict[str, bytes]:
    remote = open_remote(url, "it")
    names = [name.removeprefix(f"{remote.root}/") for name in remote.system.find(remote.root)]
    return {name: remote.read(name) or b"" for name in names if not name.startswith(".")}


def test_a_round_that_is_given_up_leaves_no_mixture_and_is_gone_on_with(
    url: str, new: Callable[[], Path], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of memories, replaced while the files before them are copied."""
    monkeypatch.setattr(snapshot, "MEMORY", 0)
    workdir = new()
    write(workdir, {"bank/list": b"0", "bank/0": b"0"})
    mirror(workdir, url)
    write(workdir, {"bank/0": b"0", "bank/1": b"1", "bank/list": b"0 1"})
    remote, now = begin(url, workdir)
    put, sent = RemoteFolder.put, []

    def busy(self: RemoteFolder, source: Path | bytes, name: str) -> None:
        sent.append(name)
        put(self, source, name)
        if name == "bank/1":
            write(workdir, {"bank/0": b"0", "bank/1": b"1", "bank/list": b"0"})

    monkeypatch.setattr(RemoteFolder, "put", busy)
    known = Known({}, {})
    with pytest.raises(ChangedError):
        copied(remote, workdir, now, known)
    assert manifest.read(remote) == now
    assert sent == ["bank/1"]
    write(workdir, {"bank/0": b"0", "bank/1": b"1", "bank/2": b"2", "bank/list": b"0 1 2"})
    now = copied(remote, workdir, now, known)
    assert sent.count("bank/1") == 1
    assert read_plain(url) == {
        "bank/0": b"0", "bank/1": b"1", "bank/2": b"2", "bank/list": b"0 1 2"
    }  # fmt: skip


def test_what_was_sent_in_vain_is_removed(
    url: str, new: Callable[[], Path], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = new()
    write(workdir, {"config.json": b"1", "bank/a": b"a"})
    remote, now = begin(url, workdir)
    known = Known({}, {})
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", lambda *_: (_ for _ in ()).throw(OSError("no answer")))
        with pytest.raises(OSError, match="no answer"):
            copied(remote, workdir, now, known)
    assert set(read_plain(url)) == {"config.json", "bank/a"}
    write(workdir, {"config.json": b"1"})
    copied(remote, workdir, now, known)
    assert read_plain(url) == {"config.json": b"1"}


def test_nothing_is_sent_twice(
    url: str, new: Callable[[], Path], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = new()
    write(workdir, STATES[0])
    mirror(workdir, url)
    sent = []
    monkeypatch.setattr(RemoteFolder, "put", lambda *call: sent.append(call))
    mirror(workdir, url)  # A new process reads all, and finds it there.
    assert sent == []


def test_links_and_what_is_being_written_stay_here(
    url: str, new: Callable[[], Path], write: Write, tmp_path: Path
) -> None:
    workdir = new()
    write(workdir, STATES[0] | {"bank/3.orbax-checkpoint-tmp-7/part": b"half"})
    (tmp_path / "mine").write_bytes(b"mine")
    (workdir / "bank" / "link").symlink_to(tmp_path / "mine")
    (workdir / "bank" / ".lock").touch()
    (workdir / "bank" / ".fingerprint").write_bytes(b"of the pictures here")
    (workdir / "notes.txt").write_bytes(b"a user's")
    with replacing(workdir / "edit-1"):
        mirror(workdir, url)
    assert read_plain(url) == STATES[0] | {"bank/.fingerprint": b"of the pictures here"}


def test_a_machine_thought_dead_stops_when_another_went_on(
    url: str, new: Callable[[], Path], write: Write, read: Read
) -> None:
    first, second = new(), new()
    write(first, STATES[0])
    remote, now = begin(url, first)
    now = copied(remote, first, now, Known({}, {}))
    begin(url, second)
    write(second, STATES[1])
    mirror(second, url)
    write(first, STATES[2])
    with pytest.raises(LostError, match="another machine went on"):
        copied(remote, first, now, Known({}, {}))
    assert read_plain(url) == STATES[1]
    assert copying.INCOMING not in str(remote.system.find(remote.root))
