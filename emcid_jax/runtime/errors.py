"""What a user is told: one exception, and problems of files with their lines."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from absl import logging


class UserError(ValueError):
    """Bad input: the message names the field, the value and the fix. `main` exits with code 2."""


class Problem(NamedTuple):
    """What is wrong with one field and what to do about it."""

    field: str
    problem: str
    value: object
    fix: str

    def line(self, origin: str) -> str:
        """The problem as one line `origin: field: problem (value) — fix`."""
        return f"{origin}: {self.field}: {self.problem} ({shown(self.value)}) — {self.fix}"


def shown(value: object, limit: int = 80) -> str:
    """`repr` of a value on one line, cut in the middle of long values."""
    if isinstance(value, str) and len(value) > 4 * limit:
        value = value[: 2 * limit] + value[-2 * limit :]  # `repr` of megabytes takes its time
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # More than 4,300 digits, or nested too deeply.
        return f"a {type(value).__name__} too long to print"
    if len(text) <= limit:
        return text
    return text[: limit // 2] + " ... " + text[-(limit // 2 - 5) :]


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Failures:
    """What is said of one file: all its problems together, and what was assumed in reading it."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._lines: dict[str, None] = {}
        self._assumed: dict[str, list[int]] = {}

    def add(self, line: int, problem: Problem) -> None:
        """Notes a problem at a line; the same problem at the same place counts once."""
        self._lines[problem.line(f"{self.path}:{line}")] = None

    def assume(self, line: int, assumed: str) -> None:
        """Notes what was assumed at a line; the same, in many lines, is said once."""
        self._assumed.setdefault(assumed, []).append(line)

    def __bool__(self) -> bool:
        """Whether there is a problem."""
        return bool(self._lines)

    def take(self, others: Failures) -> None:
        """Adds what `others` holds, of the same file."""
        self._lines |= others._lines
        for assumed, places in others._assumed.items():
            self._assumed.setdefault(assumed, []).extend(places)

    def raise_if_any(self) -> None:
        """Raises one `UserError` with one line per problem."""
        if self._lines:
            raise UserError("\n".join(self._lines))

    def finish(self) -> None:
        """As `raise_if_any`; if all is well, logs one line for each kind of assumption."""
        self.raise_if_any()
        for assumed, (first, *rest) in self._assumed.items():
            more = f" (and {len(rest)} more lines)" if rest else ""
            logging.warning("%s:%d%s: %s", self.path, first, more, assumed)
