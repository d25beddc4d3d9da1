"""The one door for text: every text file that a user can name is read here.

What comes out is Unicode text without a byte-order mark, or JSON read strictly. What goes wrong is
one `UserError` that names the file, the setting that named it, the line and the fix.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from emcid_jax.runtime.errors import Failures, Problem, UserError, shown
from emcid_jax.storage.json_text import parse_json

LIMIT = 2**27
"""Bytes of a text file that are read at most: 128 MiB. COCO's captions have 92 million."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path | str, field: str, limit: int = LIMIT) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark, which is dropped.

    Line ends stay as they are: see `lines`.

    Args:
        path: the file; a link to one is followed.
        field: the setting that named it, for the message.
        limit: bytes that it may have.

    Raises:
        UserError: a file that cannot be read, a folder, pipe or device, too large a file, another
            encoding (with the byte and its line), or a NUL byte.

    Example:
        >>> read_text("names.txt", "config.stage_two.preserve_path")
        'tench\\ntabby\\n'
    """
    data = _read_bytes(Path(path), field, limit)
    utf16 = data.startswith(_UTF16)
    if utf16:
        logging.warning("%s: read as UTF-16, as its byte-order mark says", path)
    try:
        # Two marks are what programs leave that take one for text.
        text = data.decode("utf-16" if utf16 else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start : error.start + 1]
        problem = f"is not {'UTF-16' if utf16 else 'UTF-8'}"
        failure = Problem("encoding", problem, byte, "save it as UTF-8")
        raise UserError(failure.line(f"{path}:{line}")) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        fix = "give a text file; save UTF-16 or UTF-32 as UTF-8"
        raise UserError(Problem("encoding", "holds a NUL byte", b"\0", fix).line(f"{path}:{line}"))
    return text


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank, without white space at its ends.

    Lines end as an editor has it, at \\n, \\r\\n or \\r; other separators of Unicode are text.
    """
    number, start = 1, 0
    for match in re.finditer(r"\r\n|\r|\n|\Z", text):
        line = text[start : match.start()].strip()
        if line:
            yield number, line
        number, start = number + 1, match.end()


def read_json(path: Path | str, field: str, limit: int = LIMIT, infinities: bool = False) -> Any:
    """The value in a JSON file, read strictly (see `json_text`). UserError as for `read_text`."""
    failures = Failures(Path(path))
    text = read_text(path, field, limit)
    if not text.strip():
        raise UserError(f"{field} is {str(path)!r}: is empty — give a JSON file")
    value = parse_json(text, failures, infinities=infinities)
    failures.raise_if_any()
    return value


def read_json_object(
    path: Path | str, field: str, limit: int = LIMIT, infinities: bool = False
) -> dict[str, Any]:
    """As `read_json`; UserError if the value is no object."""
    value = read_json(path, field, limit, infinities)
    if not isinstance(value, dict):
        raise UserError(f"{path}: {field}: is no JSON object ({shown(value)}) — write {{...}}")
    return value


def _read_bytes(path: Path, field: str, limit: int) -> bytes:
    def refused(reason: str, fix: str) -> UserError:
        return UserError(f"{field} is {str(path)!r}: {reason} — {fix}")

    readable = "give a readable text file"
    if not str(path) or "\0" in str(path):
        raise refused("is no path", readable)
    try:
        # Without waiting, for nobody may ever write into a pipe; what was opened is looked at.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise refused((error.strerror or str(error)).lower(), readable) from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
        os.close(handle)
        if stat.S_ISREG(about.st_mode):
            raise refused(f"has {about.st_size:,} bytes, {limit:,} are read at most", "split it")
        kind = "directory" if stat.S_ISDIR(about.st_mode) else "pipe or device"
        raise refused(f"is a {kind}", readable)
    with os.fdopen(handle, "rb") as file:
        return file.read()
