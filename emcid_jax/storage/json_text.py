"""JSON as the standard has it, read strictly: what is ambiguous or absurd is a problem with a line.

Problems: a key given twice, NaN and infinities, numbers of hundreds of digits, half of a surrogate
pair, nesting beyond `MAX_DEPTH`.
"""

from __future__ import annotations

import bisect
import json
import json.decoder
import json.scanner
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from emcid_jax.runtime.errors import Failures, Problem

MAX_DEPTH = 64
MAX_DIGITS = 100
_SURROGATE = re.compile("[\ud800-\udfff]")


_NONE: Mapping[str, Any] = MappingProxyType({})


class Record(dict[str, Any]):
    """A mapping read from a file.

    `line` is where it starts, `lines` where its fields stand, `names` what the file calls a field
    that we call otherwise.
    """

    __slots__ = ("line", "lines", "names")  # A file of captions has a million of them.

    def __init__(
        self,
        fields: Mapping[str, Any],
        line: int,
        lines: Mapping[str, int] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(fields)
        self.line = line
        self.lines = _NONE if lines is None else lines
        self.names = _NONE if names is None else names

    def line_of(self, field: str) -> int:
        """Physical line (from 1) of a field, or of the record where that is all that is known."""
        return self.lines.get(field, self.line)


class Listed(list[Any]):
    """A list read from a file; `lines` has the line where each entry starts."""

    def __init__(self, entries: Iterable[Any], lines: Iterable[int]) -> None:
        super().__init__(entries)
        self.lines = list(lines)


def parse_json(text: str, failures: Failures, first_line: int = 1, infinities: bool = False) -> Any:
    """The value that `text` holds: objects as `Record`s, lists as `Listed`, which know lines.

    `infinities`: whether `Infinity` and `-Infinity`, which Python writes, are numbers.

    What is wrong is added to `failures`; the value is then of no use.
    """
    text = _newlines(text)
    try:
        decoder = _LineDecoder(text, failures, first_line, infinities)
        return checked_tree(decoder.decode(text), failures, first_line)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        found = text.split("\n")[error.lineno - 1].strip()
        problem = Problem("json", f"{error.msg} at column {error.colno}", found, "correct the JSON")
        failures.add(line, problem)
    except _NumberError as error:
        line = first_line + text[: max(0, text.find(error.digits))].count("\n")
        failures.add(line, Problem("json", error.problem, error.digits, "give a usual number"))
    except RecursionError:
        failures.add(first_line, _too_deep(text))
    return None


def loads(text: str | bytes) -> Any:
    """JSON that this program wrote; ValueError beyond `MAX_DEPTH` levels, which it never wrote."""
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        holders = [one for one in level if isinstance(one, dict | list)]
        if not holders:
            return tree
        level = [v for one in holders for v in (one.values() if isinstance(one, dict) else one)]
    raise ValueError("is nested too deeply")


def checked_tree(tree: Any, failures: Failures, first_line: int = 1) -> Any:
    """`tree`, checked against what a text can hold: depth, half surrogate pairs, huge numbers."""
    level = [(tree, first_line)]
    for _ in range(MAX_DEPTH):
        inside: list[tuple[Any, int]] = []
        for value, line in level:
            if isinstance(value, Record):
                inside += (
                    (part, value.line_of(key)) for key in value for part in (key, value[key])
                )
            elif isinstance(value, Listed):
                inside += zip(value, value.lines, strict=True)
            elif isinstance(value, str):
                if not value.isascii() and _SURROGATE.search(value):
                    problem = "holds half of a surrogate pair"
                    failures.add(line, Problem("text", problem, value, "write the whole character"))
            elif isinstance(value, int) and value.bit_length() > 4 * MAX_DIGITS:
                failures.add(line, Problem("number", "is too long", hex(value), "shorten it"))
        if not inside:
            return tree
        level = inside
    failures.add(level[0][1], _too_deep(""))
    return None


class _NumberError(ValueError):
    def __init__(self, problem: str, digits: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.digits = digits


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _NumberError(f"is a number of {len(digits)} digits", digits)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NumberError("is no finite number", digits)
    return value


def _constant(word: str) -> float:
    return _float(word) if word == "NaN" else float(word)


class _LineDecoder(json.JSONDecoder):
    """A JSON decoder that knows lines; the C scanner cannot report positions."""

    def __init__(self, text: str, failures: Failures, first_line: int, infinities: bool) -> None:
        super().__init__(
            object_pairs_hook=lambda pairs: pairs,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant if infinities else _float,
        )
        self._failures = failures
        self._first_line = first_line
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self.parse_object = self._parse_object
        self.parse_array = self._parse_array
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _parse_object(self, start: tuple[str, int], *args: Any) -> tuple[Record, int]:
        pairs, end = json.decoder.JSONObject(start, *args)  # type: ignore[attr-defined]
        line = self._line(start[1])
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                self._failures.add(line, Problem(key, "is given twice", value, "keep one of them"))
            fields[key] = value
        return Record(fields, line), end

    def _parse_array(self, start: tuple[str, int], scan_once: Any) -> tuple[Listed, int]:
        places: list[int] = []

        def scan(text: str, place: int) -> Any:
            found = scan_once(text, place)
            places.append(place)
            return found

        entries, end = json.decoder.JSONArray(start, scan)  # type: ignore[attr-defined]
        return Listed(entries, map(self._line, places)), end

    def _line(self, place: int) -> int:
        return bisect.bisect_left(self._breaks, place) + self._first_line


def _newlines(text: str) -> str:
    """Line ends as \\n alone: in JSON they stand between values only."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _too_deep(text: str) -> Problem:
    return Problem("json", "is nested too deeply", text[:20], "flatten the file")
