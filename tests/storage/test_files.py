"""Files are whole, readable by whom the umask says, and nothing is left next to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from emcid_jax.models.weights.params import write_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import (
    changing_folder,
    link_or_copy,
    open_to_append,
    open_to_read,
    replacing,
    replacing_folder,
    require_readable,
    sweep,
    write_atomically,
)


def test_a_written_file_replaces_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_the_file_is_the_old_one_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.match(f".emcid_jax.*.{os.getpid()}.*.tmp")
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    path.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_atomically(path, b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_mode_is_the_usual_one(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "bytes", b"content")
        write_params(tmp_path / "weights", {"out": {"bias": jnp.zeros(2)}})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


# Links, pipes, devices


def refused_kinds(folder: Path) -> list[Path]:
    (folder / "mine").write_text("mine")
    (folder / "link").symlink_to(folder / "mine")
    (folder / "dangling").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    return [folder / "link", folder / "dangling", folder / "pipe", Path("/dev/null")]


def test_a_link_pipe_or_device_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    for path in refused_kinds(tmp_path):
        before = path.lstat()
        with pytest.raises(UserError, match=rf"{path}: is a (link|pipe|device)"):
            write_atomically(path, b"content")
        with pytest.raises(UserError, match=rf"{path}: is a (link|pipe|device)"):
            open_to_append(path)
        with pytest.raises(UserError, match=str(path)), replacing_folder(path):
            pass
        assert path.lstat() == before
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_input_is_read_through_links_but_not_from_pipes(tmp_path: Path) -> None:
    link, _, pipe, device = refused_kinds(tmp_path)
    require_readable(link)
    require_readable(tmp_path)
    require_readable(tmp_path / "nothing")
    with open_to_read(link) as file:
        assert file.read() == b"mine"
    with pytest.raises(IsADirectoryError):
        open_to_read(tmp_path)
    for path in (pipe, device):
        for open_it in (require_readable, open_to_read):
            with pytest.raises(UserError, match="give a plain file"):
                open_it(path)


# What a killed process leaves


def left_by(process: int, like: str) -> str:
    """The name that `process` would have given its temporary file."""
    parts = like.split(".")
    parts[3] = str(process)
    return ".".join(parts)


def test_only_what_processes_of_this_host_that_are_gone_were_writing_goes(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as temporary:
        name = temporary.name
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = left_by(dead.pid, name)
    earlier = name[:-20] + "00000000" + name[-12:]  # An earlier process of this one's number.
    kept = [
        name,
        left_by(os.getppid(), name),
        gone.replace(name.split(".")[2], "elsewhere-1"),
        ".text_encoder.17.tmp",
        ".drafts.tmp",
    ]
    for left in (gone, earlier, *kept):
        (tmp_path / left).write_text("x")
    (tmp_path / "thesis" / gone).mkdir(parents=True)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "thesis", *kept}
    assert (tmp_path / "thesis" / gone).exists()
    sweep(tmp_path, below=True)
    assert (tmp_path / "thesis").exists()
    assert not (tmp_path / "thesis" / gone).exists()
    sweep(tmp_path / "nothing")


KILLED = """
import os, sys
from pathlib import Path
from emcid_jax.storage import files

folder, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    files._exchanged = lambda one, other: False
left = None  # File operations until the kill; every one of Python's is announced to the hook.

def watch(event, arguments):
    global left
    if left is not None and event.split(".")[0] in ("os", "open", "shutil", "pathlib", "ctypes"):
        left -= 1
        if left < 0:
            os._exit(9)

def replace(name):
    with files.replacing_folder(folder / "target") as new:
        for file in ("a", "b"):
            (new / file).write_text(name)

def found():
    target = folder / "target"
    return "".join(path.read_text() for path in sorted(target.iterdir())) if target.is_dir() else ""

files._host()
sys.addaudithook(watch)
replace("old")
number, ways = 0, set()
while True:
    child = os.fork()
    if not child:
        left = number
        replace("new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    now = found()
    if exchange:
        assert now in ("oldold", "newnew"), (number, now)
    files.sweep(folder)
    now = found()
    assert now in ("oldold", "newnew"), (number, now)
    assert [path.name for path in folder.iterdir()] == ["target"], number
    ways.add((code, now))
    if not code:
        break
    replace("old")
    number += 1
assert ways == {(9, "oldold"), (9, "newnew"), (0, "newnew")}, ways
print(number)
"""


@pytest.mark.parametrize("way", ["exchange", "two steps"])
def test_a_folder_is_old_or_new_whichever_file_operation_the_kill_comes_before(
    way: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15  # Operations, and kills.


def test_a_folder_is_not_touched_if_the_block_raises(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "target") as new:
        (new / "file").write_text("old")

    def interrupted() -> None:
        with replacing_folder(tmp_path / "target") as new:
            (new / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "target" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# A folder of which some files change


def test_some_files_of_a_folder_change_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "below").mkdir(parents=True)
    for name in ("a", "b", "below/c"):
        (target / name).write_text(f"old {name}")
    (target / "link").symlink_to("a")
    target.chmod(0o750)
    kept = (target / "below" / "c").stat().st_ino
    with changing_folder(target) as new:
        write_atomically(new / "a", b"new")
        (new / "b").unlink()
        assert (target / "a").read_text() == "old a"
    assert (target / "a").read_text() == "new"
    assert not (target / "b").exists()
    assert (target / "below" / "c").stat().st_ino == kept
    assert os.readlink(target / "link") == "a"
    assert target.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_another_program_adds_meanwhile_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")

    def change() -> None:
        with changing_folder(target) as new:
            write_atomically(new / "a", b"new")
            (target / "theirs").write_text("theirs")

    with pytest.raises(UserError, match="another program changed it meanwhile"):
        change()
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "a": "old",
        "theirs": "theirs",
    }


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(os, "link", refused)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert not (tmp_path / "a").samefile(tmp_path / "b")
