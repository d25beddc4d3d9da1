"""Names as they are cleaned and compared: what nobody can see makes no difference."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from emcid_jax.runtime.errors import Failures, Problem

_WHITE = "\t\n\r"
"""Control characters that text may hold."""


def stripped(name: str) -> str:
    """`name` without white space, invisible and control characters at its ends."""
    start, end = 0, len(name)
    while start < end and _drops(name[start]):
        start += 1
    while start < end and _drops(name[end - 1]):
        end -= 1
    return name[start:end]


def visible(name: str) -> str:
    """`name` without its invisible and control characters; white space stays."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(one for one in name if one.isspace() or not is_invisible(one))


def normalised(name: str) -> str:
    """A name as names are compared: only what is visible, NFC, case folded, white space collapsed.

    >>> normalised("Tiger\\u200b  Cat") == normalised("tiger cat")
    True
    """
    # Case folding may undo the composition, hence twice.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", visible(name)).casefold())
    return " ".join(folded.split())


def is_invisible(character: str) -> bool:
    """Whether a character is of Unicode's category format (zero-width space, ...) or control."""
    return unicodedata.category(character) in ("Cf", "Cc")


def invisible(name: str) -> str:
    """The invisible characters inside a name as code points, e.g. `U+200B`; empty if none."""
    if name.isascii() and name.isprintable():
        return ""
    found = dict.fromkeys(one for one in name if is_invisible(one) and one not in _WHITE)
    return ", ".join(f"U+{ord(one):04X}" for one in found)


def text_problems(field: str, text: str) -> Iterator[Problem]:
    """What no text that reaches a model may hold: control characters, half surrogate pairs."""
    if text.isascii() and text.isprintable():
        return
    for character in dict.fromkeys(text):
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and character not in _WHITE):
            what = "a control character" if kind == "Cc" else "half of a surrogate pair"
            yield Problem(field, f"holds {what} (U+{ord(character):04X})", text, "remove it")


def clean_name(name: str, field: str, line: int, failures: Failures) -> str:
    """`name` without what nobody can see at its ends; what was dropped or stays inside is noted."""
    clean = stripped(name)
    if clean != name.strip():
        failures.assume(line, f"{field}: invisible characters at the ends of a name are dropped")
    inside = invisible(clean)
    if inside:
        problem = f"{field}: {clean!r} holds an invisible character ({inside}), which stays in it"
        failures.assume(line, problem)
    return clean


def _drops(character: str) -> bool:
    return character.isspace() or is_invisible(character)
