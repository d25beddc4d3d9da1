"""Where a run begins: with the workdir, with the mirror, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import ownership
from emcid_jax.storage.mirror import joining
from emcid_jax.storage.mirror.copying import Known, copied
from emcid_jax.storage.mirror.joining import begin
from emcid_jax.storage.mirror.manifest import MANIFEST
from emcid_jax.storage.mirror.remote_folder import RemoteFolder, open_remote

Write = Callable[[Path, Mapping[str, bytes]], None]
Read = Callable[[Path], dict[str, bytes]]
STATE = {"config.json": b"{}", "bank/a": b"memory", "log.jsonl": b"1\n"}


def mirror(workdir: Path, url: str) -> None:
    remote, now = begin(url, workdir)
    copied(remote, workdir, now, Known({}, {}))


@pytest.fixture
def first(url: str, new: Callable[[], Path], write: Write) -> Path:
    """A workdir that is at the mirror."""
    workdir = new()
    write(workdir, STATE)
    mirror(workdir, url)
    return workdir


def test_names_of_other_tasks_come_along(url: str, first: Path, tmp_path: Path, read: Read) -> None:
    (tmp_path / "other").mkdir()
    ownership.take(tmp_path / "other", ("sweep.json",), "--workdir")
    begin(url, tmp_path / "other")
    assert read(tmp_path / "other") == STATE
    assert {"sweep.json", *ownership.names_in(first)} == set(ownership.names_in(tmp_path / "other"))


def test_the_workdir_counts_if_it_is_the_mirrors(
    url: str, first: Path, new: Callable[[], Path], write: Write, read: Read
) -> None:
    write(first, {"config.json": b"{}", "bank/b": b"another"})
    mirror(first, url)
    other = new()
    begin(url, other)
    assert read(other) == {"config.json": b"{}", "bank/b": b"another"}


def test_a_workdir_that_was_emptied_is_filled_again(url: str, first: Path, read: Read) -> None:
    """Hidden files stay when a person empties a folder; the mirror must not be emptied, too."""
    for name in STATE:
        (first / name).unlink()
    begin(url, first)
    assert read(first) == STATE


def test_another_runs_mirror_is_refused(
    url: str, first: Path, new: Callable[[], Path], write: Write
) -> None:
    other = new()
    write(other, {"config.json": b"mine"})
    with pytest.raises(UserError, match=r"config\.run\.mirror is '.*', which holds another run"):
        begin(url, other)
    assert not (other / MANIFEST).exists()


def test_a_workdir_that_another_machine_overtook_is_refused(
    url: str, first: Path, new: Callable[[], Path], read: Read
) -> None:
    begin(url, new())
    with pytest.raises(UserError, match=r"another machine went on .* give an empty --workdir"):
        begin(url, first)
    assert read(first) == STATE


def test_settings_that_differ_are_refused_before_anything_is_copied(
    url: str, first: Path, new: Callable[[], Path], read: Read
) -> None:
    def check(folder: Path) -> None:
        assert json.loads((folder / "config.json").read_bytes()) == {}
        raise UserError(f"config.x is 1, but {folder} was made with 2; use a new --workdir")

    other = new()
    with pytest.raises(UserError) as caught:
        begin(url, other, check)
    assert str(caught.value) == (
        f"config.run.mirror is {url!r}, which holds another run: config.x is 1, but it was made "
        "with 2; use a new --workdir and mirror"
    )
    assert read(other) == {}
    mirror(first, url)  # It is still the first one's.


def test_a_folder_with_other_files_is_refused(
    url: str, new: Callable[[], Path], tmp_path: Path
) -> None:
    remote = open_remote(url, "it")
    remote.put(b"mine", "notes.txt")
    with pytest.raises(UserError, match="which holds other files; give an empty folder"):
        begin(url, new())
    assert remote.read("notes.txt") == b"mine"
    assert remote.read(MANIFEST) is None


def test_killed_while_it_is_filled_it_is_filled_again(
    url: str, first: Path, new: Callable[[], Path], read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, fetch = new(), joining._fetch
    for count in (0, 1, 2, 2):
        calls = 0

        def killed(*arguments: object, count: int = count) -> None:
            nonlocal calls
            calls += 1
            if calls > count:
                raise KeyboardInterrupt
            fetch(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(joining, "_fetch", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(url, workdir)
    monkeypatch.setattr(joining, "_fetch", fetch)
    assert 0 < len(read(workdir)) < len(STATE)
    begin(url, workdir)
    assert read(workdir) == STATE
    mirror(workdir, url)


@pytest.mark.parametrize("damage", ["content", "missing", "manifest", "outside"])
def test_a_damaged_mirror_is_named(
    damage: str, url: str, first: Path, new: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, now = begin(url, first)
    if damage == "content":
        remote.put(b"other", "bank/a")
    elif damage == "missing":
        remote.remove("bank/a")
    elif damage == "manifest":
        remote.put((remote.read(MANIFEST) or b"").replace(b"bank/a", b"bank/b"), MANIFEST)
    else:
        files = {**now.files, "bank/../../mine": "0" * 64}
        joining.manifests.write(remote, joining.dataclasses.replace(now, files=files))
    wanted = {
        "content": r"whose bank/a is missing or damaged",
        "missing": r"whose bank/a is missing or damaged",
        "manifest": r"mirror\.json: damaged",
        "outside": r"names 'bank/\.\./\.\./mine'",
    }
    with pytest.raises(UserError, match=wanted[damage]):
        begin(url, new())


def test_a_mirror_that_does_not_answer_is_one_line(
    url: str, new: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("HTTP 403\nno access")

    monkeypatch.setattr(RemoteFolder, "read", fails)
    with pytest.raises(UserError, match=r"cannot be used: RuntimeError: HTTP 403$"):
        begin(url, new())
