"""Lists that stand in one cell of a table, as JSON or as Python writes them."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from emcid_jax.runtime.errors import Failures
from emcid_jax.storage.json_text import Listed, parse_json

_ENTRY = re.compile(
    r"""\s*(?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*|\s*(?P<number>[-+.eE0-9]{1,32})\s*"""
)


def literal_list(text: str) -> list[Any] | None:
    """The texts and numbers of a list such as `['An image of {}', "{}", 3]`; None if it is none.

    Python's own parser is not used on the whole: it takes any expression, and deep ones crash it.
    """
    text = text.strip()
    unfit = Failures("")
    found = parse_json(text, unfit)
    if not unfit:
        return list(found) if isinstance(found, Listed) else None
    if not (text.startswith("[") and text.endswith("]")):
        return None
    entries, place = [], 1
    while text[place:].strip() != "]":
        match = _ENTRY.match(text, place)
        if match is None or text[match.end()] not in ",]":
            return None
        entry = _text(match["text"]) if match["text"] else _number(match["number"])
        if entry is None:
            return None
        entries.append(entry)
        place = match.end() + (text[match.end()] == ",")
    return entries


def _text(literal: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown escape, which Python leaves as it is
        try:
            return ast.literal_eval(literal)
        except (ValueError, SyntaxError):
            return None


def _number(digits: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(digits)
        except ValueError:
            continue
    return None
