"""Files and folders that are the old one or the new one whenever the process dies.

What is being written lies beside its place under a name that only this program gives
(`.emcid_jax.<host>.<process>.<random>.tmp`), made anew each time, so no link can wait there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import psutil

from emcid_jax.runtime.errors import UserError

LOCK = ".lock"
"""Name of every lock file, see `locks`."""
_PREFIX = ".emcid_jax."
_NAME = re.compile(r"\.emcid_jax\.(?P<host>[\w-]+)\.(?P<process>\d+)\.(?P<run>\w{8})\w{8}\.tmp")
_RUN = secrets.token_hex(4)
"""Tells this process from an earlier one of the same number."""
_OLD, _NEW = "old", "new"
"""In the temporary folder of a folder that is replaced: what was there, and what comes."""
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def is_finished(name: str) -> bool:
    """Whether a file of this name may be a result: no lock, and not what is being written."""
    return name != LOCK and not name.startswith(_PREFIX)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` by one rename; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block it becomes `path` by one rename.

    Folders are made. If the block raises, `path` stays as it was. What a killed process leaves
    goes by `sweep`. UserError if there is something else than a plain file at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    require_plain(path)
    temporary = path.with_name(_temporary_name())
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors' `save_file` makes files that only the owner reads
        temporary.replace(path)
    except OSError as error:  # A full disk, say: the system does not name the file.
        _name(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end of the block it becomes `target`, in place of an old one.

    Whenever the process dies, `target` is the old folder or the new one. Where the system cannot
    exchange two folders in one step, a process killed between two renames leaves the old one for
    `sweep` to put back. If the block raises, `target` stays as it was.

    The caller knows that the old folder is this program's. UserError if there is no folder at
    `target` but something else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    require_folder(target)
    sweep(target.parent)
    place = target.with_name(_temporary_name())
    place.mkdir()
    try:
        new, old = place / _NEW, place / _OLD / target.name
        new.mkdir()
        yield new
        if not target.exists():
            new.rename(target)
        elif not _exchanged(new, target):
            old.parent.mkdir()
            target.rename(old)
            new.rename(target)
    except OSError as error:
        _name(error, target)
        raise
    finally:
        _remove(place)


@contextlib.contextmanager
def changing_folder(target: Path) -> Iterator[Path]:
    """A copy of the folder `target` to change; at the end of the block it takes its place.

    Files of the copy are hard links where the disk has them: replace them, do not write into them.
    Whenever the process dies, `target` is as it was or as the block left it, see
    `replacing_folder`. UserError, with `target` as it is, if another program changed it meanwhile.
    """
    with replacing_folder(target) as new:
        before = listing(target)
        shutil.copytree(target, new, symlinks=True, copy_function=link_or_copy, dirs_exist_ok=True)
        yield new
        if listing(target) != before:
            raise UserError(
                f"{target}: another program changed it meanwhile; give the same command again"
            )


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """By path: what tells whether a file below `folder` is still the same."""
    every = ((path, path.lstat()) for path in folder.rglob("*"))
    return {
        str(path.relative_to(folder)): (about.st_ino, about.st_size, about.st_mtime_ns)
        for path, about in every
        if not stat.S_ISDIR(about.st_mode)
    }


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Makes `target` a hard link to the file `source`, or a copy where the disk has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # Another disk, or one without links.
        shutil.copyfile(source, target, follow_symlinks=False)


def _name(error: OSError, path: Path) -> None:
    """Adds the path to a system's error that has none. A library's own text stays as it is."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def open_to_append(path: Path) -> BinaryIO:
    """A file to read and append to, made if there is none. UserError if it is a link or no file."""
    require_plain(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    return _opened(path, flags, "a+b")


def open_to_read(path: Path | str) -> BufferedReader:
    """A file, or a link to one. UserError for anything else: from a pipe nothing may ever come."""
    return cast(BufferedReader, _opened(path, os.O_RDONLY, "rb"))


def _opened(path: Path | str, flags: int, mode: str) -> BinaryIO:
    """Opened without waiting; what was opened is looked at, not what the name said before."""
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise UserError(f"{path}: is {_KINDS.get(kind, 'no file')}; give a plain file")
    return cast(BinaryIO, os.fdopen(handle, mode))


def sweep(folder: Path, *, below: bool = False) -> None:
    """Removes from `folder` what processes of this host that are gone were writing there.

    An old folder that lost its place to no new one is put back. With `below`, subfolders are
    swept, too, but no links followed. What has other names, or is of another host, stays.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if _is_left_over(entry.name):
                _remove(Path(entry.path))
            elif below and entry.is_dir(follow_symlinks=False):
                sweep(Path(entry.path), below=True)


def require_plain(path: Path) -> None:
    """UserError if `path`, which is to be opened or replaced, is a link or no plain file."""
    _require(path, "a file", stat.S_IFREG)


def require_folder(path: Path) -> None:
    """UserError if `path`, which is to be replaced, is a link or no folder."""
    _require(path, "a folder", stat.S_IFDIR)


def require_plain_or_folder(path: Path) -> None:
    """UserError if `path`, which is to be written to, is a link, a pipe or a device."""
    _require(path, "a file or folder", stat.S_IFREG, stat.S_IFDIR)


def _require(path: Path, wanted: str, *kinds: int) -> None:
    kind = _kind(path)
    if kind is not None and kind not in kinds:
        raise UserError(f"{path}: is {_KINDS.get(kind, 'a file')}, not {wanted}; move it away")


def require_readable(path: Path) -> None:
    """UserError if `path`, which is to be read, is a pipe or device, on which reading may hang.

    Links to files are followed. A path that is not there is no matter of this check.
    """
    with contextlib.suppress(OSError):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{path}: is {_KINDS.get(kind, 'no file')}; give a plain file")


def _kind(path: Path) -> int | None:
    """What lies at `path` itself, links not followed; None: nothing."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _temporary_name() -> str:
    return f"{_PREFIX}{_host()}.{os.getpid()}.{_RUN}{secrets.token_hex(4)}.tmp"


@functools.cache
def _host() -> str:
    """The host, and where the system has them the space that its process numbers are of."""
    name = re.sub(r"[^\w-]", "-", socket.gethostname()) or "host"
    with contextlib.suppress(OSError):
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino}"
    return name


def _is_left_over(name: str) -> bool:
    """Whether `name` is a temporary one of a process of this host that is gone."""
    found = _NAME.fullmatch(name)
    if found is None or found["host"] != _host():
        return False
    process = int(found["process"])
    if process == os.getpid():
        return found["run"] != _RUN
    return not psutil.pid_exists(process)


def _remove(leftover: Path) -> None:
    """Removes a temporary file or folder; an old folder in it goes back if its place is empty."""
    if leftover.is_symlink() or not leftover.is_dir():
        leftover.unlink(missing_ok=True)
        return
    for old in (leftover / _OLD).glob("*"):
        if not os.path.lexists(leftover.with_name(old.name)):
            old.rename(leftover.with_name(old.name))
    shutil.rmtree(leftover, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return (
        exchange is not None
        and exchange(here, os.fsencode(one), here, os.fsencode(other), swap) == 0
    )
