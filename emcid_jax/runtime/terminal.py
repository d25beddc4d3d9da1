"""Text for a terminal: what people may have put into a name does not command it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import unicodedata
from typing import Any


def show(text: str, stream: Any = None) -> None:
    """Prints `text` and a line end to a text stream (default: stdout), whatever it contains.

    Control characters (escape codes among them), invisible ones, and those that the stream's
    encoding lacks appear as `\\x1b`, `\\u202e` and so on. Line ends and tabs stay.

    Raises `OSError`, which names the stream, if it cannot be written.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    seen = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(f"{seen}\n")
        stream.flush()
    except OSError as error:  # A full disk, or nobody who reads.
        error.filename = error.filename or stream.name
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # What is left of the text must not fail again at the end.
        os.close(null)
        raise


def printable(text: str) -> str:
    """`text` with every character that is not to be seen written as an escape.

    >>> printable("red\\x1b[31m")
    'red\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(c) if _is_hidden(c) else c for c in text)


class _Printable(logging.Filter):
    """Makes log messages printable, where they quote names."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), None
        return True


def guard() -> None:
    """Lets nothing else that writes to the terminal fail on a character, or command it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        with contextlib.suppress(ValueError):  # a stream that is closed
            if reconfigure:
                reconfigure(errors="backslashreplace")
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, _Printable) for one in handler.filters):
            handler.addFilter(_Printable())


def _is_hidden(character: str) -> bool:
    """Whether a terminal obeys it, draws nothing for it, or does not know it."""
    if character in "\n\t" or character.isprintable():
        return False
    return unicodedata.category(character) != "Zs"  # Spaces of other widths are spaces.


def _escaped(character: str) -> str:
    if ord(character) < 128:
        return f"\\x{ord(character):02x}"
    return character.encode("ascii", "backslashreplace").decode()
