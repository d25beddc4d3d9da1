"""Implicit assumptions to edit, with the prompts that test the edit: TIMED's and RoAD's tables.

"A pack of roses" is drawn red until an edit says blue. Each test draws a prompt and asks which of
two descriptions the picture fits (docs/implicit.md).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emcid_jax.concepts.readers.located import Table, parse
from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.storage.json_text import Record
from emcid_jax.storage.text_files import read_text

FIX = "give a TIMED table (old, new, positive1, gt1, negative1, gn1, ...) or a RoAD table"


class Choice(NamedTuple):
    """A prompt, and the descriptions between which its picture is judged."""

    prompt: str
    old: str
    """True of the unedited model's picture."""
    new: str
    """What the edit makes true, where it reaches."""


@dataclasses.dataclass(frozen=True)
class ImplicitEdit:
    """One row: an edit of its own, and its tests. All texts are lower-case, as in the benchmark."""

    source: str
    """The prompt that is edited."""
    dest: str
    """What it shall mean."""
    own: Choice
    """The source itself; the new description is right."""
    related: tuple[Choice, ...]
    """Prompts that the edit should reach; the new description is right."""
    unrelated: tuple[Choice, ...]
    """Prompts that it should not; the old description, which is the prompt, is right."""
    line: int = dataclasses.field(default=0, compare=False)
    """Where the row starts in its file."""

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All tests: the source's, the related ones, the unrelated ones."""
        return (self.own, *self.related, *self.unrelated)


class _Layout(NamedTuple):
    """Names of a table's columns; `{}` is the number of a test."""

    source: str
    dest: str
    own: tuple[str, str]
    related: tuple[str, str, str]
    unrelated: tuple[str, str]


_LAYOUTS = (
    _Layout(
        "old", "new", ("old", "new"), ("positive{}", "positive{}", "gt{}"), ("negative{}", "gn{}")
    ),
    _Layout(
        "Prompt",
        "New",
        ("Old", "New"),
        ("Positive{}", "Positive_old{}", "Positive_new{}"),
        ("Negative{}", "Negative_new{}"),
    ),
)


def read_implicit(path: Path) -> list[ImplicitEdit]:
    """The rows of a TIMED or RoAD table, told apart by their columns.

    Every row must have as many related and as many unrelated tests as the header has. Raises
    `UserError` with one line per problem.
    """
    failures = Failures(path)
    table = parse(read_text(path, "implicit"), failures)
    found: list[ImplicitEdit] = []
    if isinstance(table, Table):
        layout = next((one for one in _LAYOUTS if _required(one) <= set(table.columns)), None)
        if layout is None:
            columns = ", ".join(table.columns)
            failures.add(table.line, Problem("columns", "are of no known table", columns, FIX))
        else:
            found = [_row(row, layout, table.columns, failures) for row in table.rows]
    elif not failures:
        failures.add(1, Problem("file", "is no table", path.name, FIX))
    if not found and not failures:
        failures.add(1, Problem("file", "holds no row", path.name, "write at least one"))
    failures.finish()
    return found


def _required(layout: _Layout) -> set[str]:
    numbered = (name.format(1) for name in (*layout.related, *layout.unrelated))
    return {layout.source, layout.dest, *layout.own, *numbered}


def _row(row: Record, layout: _Layout, columns: Sequence[str], failures: Failures) -> ImplicitEdit:
    def text(column: str) -> str:
        value = row.get(column, "").strip().lower()
        if not value:
            problem = Problem(column, "is empty", row.get(column), "write a prompt")
            failures.add(row.line, problem)
        return value

    def tests(names: tuple[str, ...]) -> list[tuple[str, ...]]:
        numbers = sorted(
            int(match[1])
            for column in columns
            if (match := re.fullmatch(names[0].format(r"(\d+)"), column))
        )
        return [tuple(text(name.format(number)) for name in names) for number in numbers]

    source = text(layout.source)
    return ImplicitEdit(
        source,
        text(layout.dest),
        Choice(source, *map(text, layout.own)),
        tuple(Choice(*test) for test in tests(layout.related)),
        tuple(Choice(test[0], *test) for test in tests(layout.unrelated)),
        row.line,
    )
