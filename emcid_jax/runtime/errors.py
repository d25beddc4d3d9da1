"""What a user is told: one exception, and problems of files with their lines."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


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


class Failures:
    """Collects the problems of one file so that they are all reported at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, None] = {}

    def add(self, line: int, problem: Problem) -> None:
        """Notes a problem at a line; the same problem at the same place counts once."""
        self._lines[problem.line(f"{self.path}:{line}")] = None

    def __bool__(self) -> bool:
        return bool(self._lines)

    def raise_if_any(self) -> None:
        """Raises one `UserError` with one line per problem."""
        if self._lines:
            raise UserError("\n".join(self._lines))
