"""The finished files of a workdir at one moment, as a kill at that moment would leave them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emcid_jax.storage import ownership
from emcid_jax.storage.files import file_hash, is_finished

MEMORY = 64 * 2**20
"""Most bytes of files that are held in memory."""
_UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of folders that Orbax is filling."""


class Stat(NamedTuple):
    """What tells whether a file is still the same."""

    number: int
    time: int
    size: int


Hashes = dict[str, tuple[Stat, str]]
"""By name: a file as it was, and its SHA-256 (hex)."""


class Snapshot(NamedTuple):
    """The workdir at one moment."""

    files: dict[str, Stat]
    """By name below the workdir, with slashes."""
    contents: dict[str, bytes]
    """Of the newest files that are not known: the next may soon replace them."""


class ChangedError(Exception):
    """A file was replaced while it was read."""


def take(workdir: Path, known: Hashes) -> Snapshot:
    """The files at one moment: that between two equal looks.

    `known` are files whose content is not asked for, unless they have changed.
    """
    while True:
        found, contents, room = files_in(workdir), {}, MEMORY
        with contextlib.suppress(FileNotFoundError):
            for name, now in sorted(found.items(), key=lambda entry: -entry[1].time):
                if now.size <= room and not _is_known(known, name, now):
                    contents[name] = (workdir / name).read_bytes()
                    room -= now.size
            if files_in(workdir) == found:
                return Snapshot(found, contents)


def hash_in(taken: Snapshot, workdir: Path, name: str, known: Hashes) -> str:
    """SHA-256 of a file of the snapshot, noted in `known`. ChangedError if it is no more there."""
    now = taken.files[name]
    if not _is_known(known, name, now):
        if name in taken.contents:
            found = hashlib.sha256(taken.contents[name]).hexdigest()
        else:
            with unchanged(taken, workdir, name):
                found = file_hash(workdir / name)
        known[name] = now, found
    return known[name][1]


@contextlib.contextmanager
def unchanged(taken: Snapshot, workdir: Path, name: str) -> Iterator[None]:
    """ChangedError if what the block reads of a file may not be what the snapshot has."""
    try:
        yield
    except FileNotFoundError:  # The file, or something else.
        if name in taken.contents or _stat(workdir / name) == taken.files[name]:
            raise
    if name not in taken.contents and _stat(workdir / name) != taken.files[name]:
        raise ChangedError


def files_in(workdir: Path) -> dict[str, Stat]:
    """Finished files of ours by name; locks and what is being written are left out."""
    found = {}
    for top in ownership.own_in(workdir):
        for path in [top, *_below(top)]:
            now = _stat(path)
            if now is not None:
                found[path.relative_to(workdir).as_posix()] = now
    return found


def _is_known(known: Hashes, name: str, now: Stat) -> bool:
    return name in known and known[name][0] == now


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if is_finished(one) and _UNFINISHED not in one]
        yield from (Path(parent, name) for name in names if is_finished(name))


def _stat(path: Path) -> Stat | None:
    """None if it is gone, or no plain file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Stat(found.st_ino, found.st_mtime_ns, found.st_size)
