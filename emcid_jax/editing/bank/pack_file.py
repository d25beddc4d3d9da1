"""One file with copies of many memories, so that a large bank opens by one read.

A memory's name says what it is, so a copy cannot be stale. Losing the pack, or finding it damaged,
costs time only: the memories lie beside it, one file each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from emcid_jax.storage import checksums
from emcid_jax.storage.files import open_to_read, write_atomically

FILE = "memories.pack"


def names(folder: Path) -> set[str]:
    """Memories in the pack of `folder`, from its first line alone; empty without one."""
    try:
        with open_to_read(folder / FILE) as file:
            return set(json.loads(file.readline())["sizes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def read(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all memories in the pack, checked; empty, with a warning, if damaged."""
    path = folder / FILE
    try:
        with open_to_read(path) as file:
            content = file.read()
    except FileNotFoundError:
        return {}
    found = {}
    try:
        if not checksums.is_intact(content):
            raise ValueError("its checksum does not fit")
        start = content.index(b"\n") + 1
        for name, size in json.loads(content[:start])["sizes"].items():
            found[name] = content[start : start + size]
            start += size
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logging.warning(
            "%s: damaged (%s); delete it: the memories are also in their own files", path, error
        )
        return {}
    return found


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replaces the pack of `folder`, by one rename."""
    sizes = {name: len(content) for name, content in contents.items()}
    head = json.dumps({"checksum": checksums.UNSEALED, "sizes": sizes}).encode() + b"\n"
    write_atomically(folder / FILE, checksums.sealed(head + b"".join(contents.values())))


def forget(folder: Path, name: str) -> None:
    """Deletes the pack if it holds a copy of a memory that is written anew: bits may differ."""
    if name in names(folder):
        (folder / FILE).unlink(missing_ok=True)
