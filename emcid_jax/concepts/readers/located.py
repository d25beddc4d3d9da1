"""Request files as located records: JSON, YAML and CSV text with the line of everything."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.runtime.json_text import Record, parse_json


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file: its header, the header's line and the rows; every value is text."""

    line: int
    columns: tuple[str, ...]
    rows: list[Record]


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
        return parse_json(text, failures)
    if yaml_suffix or _looks_like_yaml(text):
        return _parse_yaml(text, failures)
    return _parse_csv(text, failures)


def _looks_like_yaml(text: str) -> bool:
    for line in io.StringIO(text):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            return bool(re.match(r"---|- |-$|[\w\"' ]+:(\s|$)", stripped))
    return False


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
