"""Files that are complete or absent whenever the process dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` by one rename; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block it becomes `path` by one rename.

    Folders are made. If the block raises, `path` stays as it was. What a killed process leaves is
    named `.<name>.<process>.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors' `save_file` makes files that only the owner reads
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
