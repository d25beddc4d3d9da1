"""Files as located records: JSON, JSON lines, YAML and CSV text with the line of everything."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from emcid_jax.concepts.names import stripped
from emcid_jax.concepts.readers.yaml_text import parse_yaml
from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.storage.json_text import Listed, Record, parse_json
from emcid_jax.storage.text_files import lines

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What may stand between the values of a CSV file, the likeliest first."""
_HEADER = 2**16
"""Characters within which a header stands."""
_RETRIED = 2**16
"""Characters of a file in brackets that is tried as YAML where it is no JSON."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file: its header, the header's line and the rows; every value is text."""

    line: int
    columns: tuple[str, ...]
    rows: list[Record]


def parse(text: str, failures: Failures) -> Table | Any:
    """Reads a file by what it holds: JSON, JSON lines, YAML or CSV; its name does not matter.

    Text that begins with `[` or `{` is JSON, one value or one a line, or YAML in brackets. Returns
    a `Table` for CSV and the tree for the others, in which every object is a `Record`; JSON lines
    are a list. A file that cannot be parsed gives failures with their lines and None.
    """
    start = text.lstrip()[:1]
    if not start:
        failures.add(1, Problem("file", "is empty", "", "write at least one entry"))
        return None
    if start in "[{":
        return parse_json_lines(text, failures) if _is_json_lines(text) else _json(text, failures)
    return parse_yaml(text, failures) if _looks_like_yaml(text) else parse_csv(text, failures)


def parse_json_lines(text: str, failures: Failures) -> Listed:
    """One JSON value a line; blank lines are none."""
    numbered = list(lines(text))
    values = [parse_json(line, failures, number) for number, line in numbered]
    return Listed(values, (number for number, _ in numbered))


def header(text: str) -> tuple[str, ...]:
    """The names of the columns that `text` has if it is a CSV file."""
    for delimiter in _by_columns(text):
        return tuple(map(stripped, _first_row(text, delimiter)))
    return ()


def parse_csv(text: str, failures: Failures) -> Table | None:
    """A CSV file, its values separated by what gives the header the most columns.

    Columns without a name are left out. Empty values behind the last column do not count.
    """
    delimiter = next(iter(_by_columns(text)), ",")
    if delimiter != ",":
        failures.assume(1, f"values are separated by {DELIMITERS[delimiter]}")
    rows = _csv_rows(text, delimiter, failures)
    start, first = next((row for row in rows if _filled(row[1])), (1, []))
    names = [stripped(cell) for cell in first]
    columns = tuple(filter(None, names))
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        failures.add(start, Problem("header", "has a column twice", name, "keep one of them"))
    width = max((i + 1 for i, name in enumerate(names) if name), default=0)
    records = []
    for line, cells in rows:
        if not _filled(cells):
            continue
        if len(cells) < width or _filled(cells[len(names) :]):
            fix = f"give {width} values as in the header; quote values with {DELIMITERS[delimiter]}"
            row = delimiter.join(cells)
            failures.add(line, Problem("row", f"has {len(cells)} values", row, fix))
            continue
        pairs = list(zip(names, cells, strict=False))
        if any(cell.strip() and not name for name, cell in pairs[1:]):
            failures.assume(start, "columns without a name are not read")
        records.append(Record({name: cell for name, cell in pairs if name}, line))
    return Table(start, columns, records)


def number_in(fields: Mapping[str, Any], column: str, line: int, failures: Failures) -> int:
    """The number from 0 to 2^32 - 1 in a column or field; what is wrong is noted, and 0 given."""
    text = str(fields.get(column, "")).strip()
    if text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**32:
        return int(text)
    if column in fields:
        fix = "give a number from 0 to 2^32 - 1"
        failures.add(line, Problem(column, "is no number", fields[column], fix))
    else:
        failures.add(1, Problem(column, "is missing", None, f"give a column {column}"))
    return 0


def _is_json_lines(text: str) -> bool:
    """Whether each line is a value of its own; the first two tell."""
    (_, first), second = next(lines(text)), next(itertools.islice(lines(text), 1, None), None)
    if second is None:
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        # A damaged first line, and no object that is written on several lines.
        return first[0] == "{" == second[1][0] and first[-1] not in "[{:,"
    return True


def _json(text: str, failures: Failures) -> Any:
    unfit = Failures(failures.path)
    tree = parse_json(text, unfit)
    if unfit and len(text) <= _RETRIED:
        other = Failures(failures.path)
        tree = parse_yaml(text, other)
        if not other:
            return tree
    failures.take(unfit)
    return None if unfit else tree


def _looks_like_yaml(text: str) -> bool:
    for _, line in lines(text):
        if not line.startswith("#"):
            return bool(re.match(r"---|- |-$|[\w\"' ]+:(\s|$)", line))
    return False


def _by_columns(text: str) -> list[str]:
    """The delimiters with which the header can be read, those that give more columns first."""
    counts = {}
    for delimiter in DELIMITERS:
        with_it = _first_row(text, delimiter)
        if with_it:
            counts[delimiter] = len(with_it)
    return sorted(counts, key=lambda delimiter: -counts[delimiter])


def _first_row(text: str, delimiter: str) -> list[str]:
    unfit = Failures("")
    rows = (cells for _, cells in _csv_rows(text[:_HEADER], delimiter, unfit))
    return next(filter(_filled, rows), [])


def _filled(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells)


def _csv_rows(text: str, delimiter: str, failures: Failures) -> Iterator[tuple[int, list[str]]]:
    """Rows with the physical line they start on; a quoted value may hold line breaks."""
    # newline="" keeps the breaks inside quotes, and splits at \n, \r and \r\n only.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = Problem("csv", str(error), f"row from line {line}", "correct the quotes")
            failures.add(line, problem)
            return
        yield line, cells
        line = reader.line_num + 1
