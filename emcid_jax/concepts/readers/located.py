"""Request files as located records: JSON, YAML and CSV text with the line of everything."""

from __future__ import annotations

import bisect
import csv
import dataclasses
import io
import json
import json.decoder
import json.scanner
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from emcid_jax.concepts.requests import Problem
from emcid_jax.runtime.errors import UserError


class Record(dict[str, Any]):
    """A mapping read from a file.

    `line` is where it starts, `lines` where its fields stand, `names` what the file calls a field
    that we call otherwise.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        line: int,
        lines: dict[str, int] | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        super().__init__(fields)
        self.line = line
        self.lines = lines or {}
        self.names = names or {}

    def line_of(self, field: str) -> int:
        """Physical line (from 1) of a field, or of the record where that is all that is known."""
        return self.lines.get(field, self.line)


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file: its header, the header's line and the rows; every value is text."""

    line: int
    columns: tuple[str, ...]
    rows: list[Record]


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


def read_text(path: Path) -> str:
    """The file's UTF-8 text, byte order mark dropped. Raises `UserError` when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        problem = Problem("requests", reason, str(path), "give a readable request file")
        raise UserError(problem.line(str(path))) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start : error.start + 1]
        problem = Problem("encoding", "is not UTF-8", byte, "save the file as UTF-8")
        raise UserError(problem.line(f"{path}:{line}")) from None


def parse(text: str, path: Path, failures: Failures) -> Table | Any:
    """Reads a file by what it holds: JSON (first character `[` or `{`), YAML or CSV.

    Returns a `Table` for CSV and the tree for JSON and YAML, in which every object is a `Record`.
    A file that cannot be parsed gives one failure with its line and None.
    """
    yaml_suffix = path.suffix.lower() in (".yaml", ".yml")
    if not text.strip():
        failures.add(1, Problem("file", "is empty", "", "write at least one request"))
        return None
    if text.lstrip()[0] in "[{" and not yaml_suffix:
        return _parse_json(text, failures)
    if yaml_suffix or _looks_like_yaml(text):
        return _parse_yaml(text, failures)
    return _parse_csv(text, failures)


def _looks_like_yaml(text: str) -> bool:
    for line in io.StringIO(text):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            return bool(re.match(r"---|- |-$|[\w\"' ]+:(\s|$)", stripped))
    return False


class _LineDecoder(json.JSONDecoder):
    """A JSON decoder whose objects are `Record`s; the C scanner cannot report positions."""

    def __init__(self, text: str, failures: Failures) -> None:
        super().__init__(object_pairs_hook=lambda pairs: pairs)
        self._failures = failures
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self.parse_object = self._parse_object
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _parse_object(self, start: tuple[str, int], *args: Any) -> tuple[Record, int]:
        pairs, end = json.decoder.JSONObject(start, *args)  # type: ignore[attr-defined]
        line = bisect.bisect_left(self._breaks, start[1]) + 1
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:
                problem = Problem(key, "is given twice", value, "keep one of them")
                self._failures.add(line, problem)
            fields[key] = value
        return Record(fields, line), end


def _parse_json(text: str, failures: Failures) -> Any:
    try:
        return _LineDecoder(text, failures).decode(text)
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        found = lines[error.lineno - 1].strip()
        problem = f"{error.msg} at column {error.colno}"
        failures.add(error.lineno, Problem("json", problem, found, "correct the JSON"))
    except ValueError as error:
        failures.add(1, Problem("json", str(error), text[:20], "correct the JSON"))
    except RecursionError:
        failures.add(1, Problem("json", "is nested too deeply", text[:20], "flatten the file"))
    return None


def _parse_yaml(text: str, failures: Failures) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loader whose mappings are `Record`s."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Record:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen and key != "<<":
                line = key_node.start_mark.line + 1
                failures.add(line, Problem(str(key), "is given twice", key, "keep one of them"))
            seen.add(key)
        loader.flatten_mapping(node)
        fields: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            fields[key] = loader.construct_object(value_node, deep=True)
            lines[key] = key_node.start_mark.line + 1
        return Record(fields, node.start_mark.line + 1, lines)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        # A subclass of SafeLoader: no Python object can be built from the file.
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        found = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
        problem = (error.problem or "cannot be read").replace("\n", " ")
        failures.add(line, Problem("yaml", problem, found, "correct the YAML"))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        failures.add(1, Problem("yaml", "cannot be read", reason, "correct the YAML"))
    except RecursionError:
        failures.add(1, Problem("yaml", "is nested too deeply", text[:20], "flatten the file"))
    return None


def _parse_csv(text: str, failures: Failures) -> Table | None:
    rows = _csv_rows(text, failures)
    start, header = next((row for row in rows if any(cell.strip() for cell in row[1])), (1, []))
    columns = tuple(cell.strip() for cell in header)
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        failures.add(start, Problem("header", "has a column twice", name, "keep one of them"))
    records = []
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            fix = f"give {len(columns)} values as in the header; quote values with commas"
            failures.add(line, Problem("row", f"has {len(cells)} values", ",".join(cells), fix))
            continue
        records.append(Record(dict(zip(columns, cells, strict=True)), line))
    return Table(start, columns, records)


def _csv_rows(text: str, failures: Failures) -> Iterator[tuple[int, list[str]]]:
    """Rows with the physical line they start on; a quoted value may hold line breaks."""
    # newline="" keeps the breaks inside quotes, and splits at \n, \r and \r\n only.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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
