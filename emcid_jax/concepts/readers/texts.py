"""Lists of texts that users have: captions, prompts, names to keep, in whatever file they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from emcid_jax.concepts.names import clean_name, stripped, text_problems
from emcid_jax.concepts.readers.located import Table, header, parse, parse_csv, parse_json_lines
from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.storage.json_text import Listed, Record
from emcid_jax.storage.text_files import lines, read_text

CAPTION_COLUMNS = ("caption", "prompt")
PROMPT_COLUMNS = ("prompt", "caption")
NAME_COLUMNS = ("name",)
_TABLES, _TREES = (".csv", ".tsv"), (".json", ".jsonl", ".yaml", ".yml")


class Text(NamedTuple):
    """One entry of a list of texts."""

    text: str
    """Without white space at its ends, and not empty."""
    line: int
    """Where it stands in its file."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """What the file says beside it: the columns of its row, the fields of its object."""


def read_texts(path: Path | str, field: str, columns: Sequence[str]) -> list[Text]:
    """The texts of a file, recognised by what it holds; blank ones are left out.

    A JSON list, JSON lines or a YAML list, of strings or of objects that hold the text; COCO's own
    file of captions (the objects under `annotations`); a CSV file with a column that holds it; any
    other file has a text a line.

    Args:
        path: the file.
        field: the setting that named it, for messages.
        columns: names of the column or field that holds the text; the first that is there counts.

    Raises:
        UserError: with a line per problem. A file that begins as JSON or is named as a table and
            holds no such texts is refused, never read as lines.
    """
    failures = Failures(path)
    found = _texts(read_text(path, field), field, tuple(columns), failures)
    failures.finish()
    return [one for one in found if one.text]


def read_names(path: Path | str, field: str) -> list[str]:
    """The names of a file, as `read_texts` with the column or field `name`.

    Invisible characters are dropped at the ends of a name and warned about inside.
    """
    failures = Failures(path)
    names = []
    for one in read_texts(path, field, NAME_COLUMNS):
        for problem in text_problems("name", stripped(one.text)):
            failures.add(one.line, problem)
        names.append(clean_name(one.text, "name", one.line, failures))
    failures.finish()
    return [name for name in names if name]


def _texts(text: str, field: str, columns: tuple[str, ...], failures: Failures) -> list[Text]:
    wanted = " or ".join(columns)
    suffix = Path(failures.path).suffix.lower()
    first = next((line for _, line in lines(text)), "")
    if first[:1] in ("[", "{") or first in ("-", "---") or first.startswith("- "):
        return _from_tree(parse(text, failures), field, columns, failures)
    if set(columns) & set(header(text)):
        table = parse_csv(text, failures)
        return _from_list(table.rows, columns, failures) if isinstance(table, Table) else []
    if first[:1] == '"' and all(line[0] == line[-1] == '"' for _, line in lines(text)):
        return _from_list(parse_json_lines(text, failures), columns, failures)
    if suffix in _TABLES and len(header(text)) > 1:
        problem = f"is a table without a column {wanted}"
        failures.add(1, Problem(field, problem, first, f"name the column {columns[0]}"))
        return []
    if suffix in _TABLES:
        failures.assume(1, f"no column is named {wanted}: every line is read, the first as well")
    if suffix in _TREES and first:
        fix = f"give a list of texts or of objects with {wanted}, or rename a text file"
        failures.add(1, Problem(field, f"is no {suffix[1:]} file", first, fix))
        return []
    return [Text(line, number) for number, line in lines(text)]


def _from_tree(tree: Any, field: str, columns: tuple[str, ...], failures: Failures) -> list[Text]:
    if isinstance(tree, Record) and isinstance(tree.get("annotations"), Listed):
        tree = tree["annotations"]
    if isinstance(tree, Record) and set(columns) & set(tree):
        tree = Listed([tree], [tree.line])
    if isinstance(tree, Listed):
        return _from_list(tree, columns, failures)
    if not failures:
        fix = f"give a list of texts or of objects with {' or '.join(columns)}"
        failures.add(1, Problem(field, "holds no list", tree, fix))
    return []


def _from_list(entries: list[Any], columns: tuple[str, ...], failures: Failures) -> list[Text]:
    places = entries.lines if isinstance(entries, Listed) else [row.line for row in entries]
    found = []
    for entry, line in zip(entries, places, strict=True):
        fields = entry if isinstance(entry, Record) else {}
        name = next((name for name in columns if name in fields), columns[0])
        text = fields.get(name) if isinstance(entry, Record) else entry
        if isinstance(text, str):
            found.append(Text(text.strip(), line, fields))
        else:
            fix = f"write text, or an object with {' or '.join(columns)}"
            failures.add(line, Problem(name, "is no text", entry, fix))
    return found
