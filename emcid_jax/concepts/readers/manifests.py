"""Reads request files: manifests (JSON, YAML, CSV) and the published files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emcid_jax.concepts.names import clean_name
from emcid_jax.concepts.readers import published
from emcid_jax.concepts.readers.literal_lists import literal_list
from emcid_jax.concepts.readers.located import Table, parse
from emcid_jax.concepts.requests import TASKS, EditRequest, RequestError, is_integer
from emcid_jax.concepts.templates import DEBIAS_TEMPLATES, OBJECT_TEMPLATES, SLOT, TEMPLATE_SETS
from emcid_jax.runtime.errors import Failures, Problem, shown
from emcid_jax.storage.json_text import Listed, Record
from emcid_jax.storage.text_files import read_text

DEFAULT_SEED = 0

# Names of fields in the published files.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "prompts": "templates",
        "seed_train": "seed",
        "source id": "source_id",
        "dest id": "dest_id",
        "dests": "dest",
        "training_img_paths": "image_paths",
    }
)
# The run settings of a released instruction file; they belong in the config and are not read here.
INSTRUCTION_KEYS = frozenset(
    (
        "hparams",
        "model_ckpt",
        "mom2_weight",
        "mom2_weight_2",
        "edit_weight",
        "val_prompts",
        "out_dir",
        "sample_num",
        "other",
    )
)


class _FieldError(Exception):
    """A field's value cannot be converted: what is wrong, and the fix."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


def read_requests(
    path: Path | str, default_templates: Sequence[str] | None = None
) -> list[EditRequest]:
    """Reads every edit request of a file.

    The kind of file is found from what it holds, never from its name; `docs/requests.md` lists the
    kinds. `default_templates` are used where the file gives none; without them `debias` requests
    have theirs and all others the object templates.

    Raises `UserError` with one line `file:line: field: problem (value) — fix` for each failure of
    the file, all of them, before anything is returned.
    """
    path = Path(path)
    failures = Failures(path)
    tree = parse(read_text(path, "requests"), failures)
    # A file that does not parse gives no second failure about its kind.
    records = _records(tree, failures) if tree is not None else []
    requests = []
    for record in records:
        request = _request(record, tuple(default_templates or ()), failures, path)
        if request is not None:
            requests.append(request)
    if not records and not failures:
        failures.add(1, Problem("file", "holds no edit request", 0, "write at least one"))
    failures.finish()
    return requests


def _records(tree: Table | Any, failures: Failures) -> list[Record]:
    if isinstance(tree, Table):
        rows = tree.rows
        manifest = {"source", "dest"} <= {ALIASES.get(name, name) for name in tree.columns}
        if manifest:
            rows = _known_columns(tree, failures)
        for accepts, convert in published.TABLES:
            if accepts(frozenset(tree.columns)):
                return convert(rows, failures)
        return rows if manifest else _unknown("columns " + ", ".join(tree.columns), failures)
    if isinstance(tree, Record):
        return _manifest(tree, failures)
    if not isinstance(tree, Listed):
        return _unknown(f"a single value {shown(tree)}", failures)
    if tree and all(isinstance(item, str) for item in tree):
        failures.assume(
            1, f"a bare list of names is taken as artists, erased towards {published.ARTIST_DEST!r}"
        )
        return published.artist_names(tree, tree.lines)
    return _listed(tree, failures)


def _known_columns(table: Table, failures: Failures) -> list[Record]:
    """Rows without unknown columns, which are reported once."""
    unknown = {name for name in table.columns if ALIASES.get(name, name) not in _CONVERTERS}
    for name in table.columns:
        if name in unknown:
            failures.add(table.line, _unknown_field(name, "column"))
    return [
        Record({name: row[name] for name in row if name not in unknown}, row.line)
        for row in table.rows
    ]


def _unknown_field(name: str, value: object) -> Problem:
    close = difflib.get_close_matches(name[:40], list(_CONVERTERS), 1)
    fix = f"did you mean {close[0]}?" if close else "use " + ", ".join(_CONVERTERS)
    return Problem(name, "is no request field", value, fix)


def _manifest(tree: Record, failures: Failures) -> list[Record]:
    if "requests" not in tree:
        if "source" in tree:
            return [tree]
        return _unknown("an object with keys " + ", ".join(map(str, tree)), failures)
    for key in sorted(set(tree) - INSTRUCTION_KEYS - {"requests", "defaults"}, key=str):
        fix = "use only `defaults` and `requests`"
        failures.add(tree.line_of(key), Problem(key, "is no manifest key", tree[key], fix))
    defaults = tree.get("defaults")
    if defaults is None:
        defaults = Record({}, tree.line)
    if not isinstance(defaults, Record):
        line = tree.line_of("defaults")
        failures.add(line, Problem("defaults", "is not an object", defaults, "write fields"))
        defaults = Record({}, line)
    defaults = _canonical(defaults, failures)
    if not isinstance(tree["requests"], Listed):
        problem = Problem("requests", "is not a list", tree["requests"], "write a list of objects")
        failures.add(tree.line_of("requests"), problem)
        return []
    rows = []
    for record in _listed(tree["requests"], failures):
        own = _canonical(record, failures)
        lines = {field: defaults.line_of(field) for field in defaults}
        lines |= {field: own.line_of(field) for field in own}
        names = {**defaults.names, **own.names}
        rows.append(Record({**defaults, **own}, own.line, lines, names))
    return rows


def _listed(items: Listed, failures: Failures) -> list[Record]:
    """The objects of a list, in the published prompt-per-object form or the manifest's."""
    records = []
    for number, (item, line) in enumerate(zip(items, items.lines, strict=True), 1):
        if isinstance(item, Record):
            records.append(item)
        else:
            problem = f"entry {number} is not an object"
            failures.add(line, Problem("requests", problem, item, "write source, dest, ..."))
    if any(published.is_class_prompt(record) for record in records):
        return published.class_prompts(records, failures)
    if records and not any("source" in record for record in records):
        return _unknown("objects with keys " + ", ".join(map(str, records[0])), failures)
    return records


def _unknown(found: str, failures: Failures) -> list[Record]:
    problem = Problem("file", "is no known kind of request file", found, published.ACCEPTED)
    failures.add(1, problem)
    return []


def _canonical(record: Record, failures: Failures) -> Record:
    """The record under the manifest's field names, blank fields dropped."""
    fields: dict[str, Any] = {}
    lines: dict[str, int] = {}
    names: dict[str, str] = {}
    for name, value in record.items():
        field = ALIASES.get(name, name)
        line = record.line_of(name)
        if field not in _CONVERTERS:
            failures.add(line, _unknown_field(str(name), value))
        elif value is None or (_is_blank(value) and field not in ("source", "dest")):
            continue
        elif field in fields:
            problem = Problem(str(name), f"is {field} a second time", value, "keep one of them")
            failures.add(line, problem)
        else:
            fields[field] = value
            lines[field] = line
            names[field] = record.names.get(name, str(name))
    return Record(fields, record.line, lines, names)


def _request(
    record: Record, default_templates: tuple[str, ...], failures: Failures, path: Path
) -> EditRequest | None:
    record = _canonical(record, failures)
    fields: dict[str, Any] = {}
    problems = []
    for field, value in record.items():
        try:
            fields[field] = _CONVERTERS[field](value)
            if field == "dest" and str(record.get("task")).strip().lower() == "debias":
                fields[field] = _texts(value)
        except _FieldError as error:
            problems.append(Problem(field, error.problem, value, error.fix))
    for field in ("source", "dest"):
        if field in fields:
            fields[field] = _clean(fields[field], field, record, failures)
    if "task" not in record and "|" in fields.get("dest", ""):
        assumed = "dest: a bar without a task is part of the name; task debias takes several"
        failures.assume(record.line_of("dest"), assumed)
    task = fields.get("task", "update")
    required = ("source",) if task == "erase" else ("source", "dest")
    problems += [
        Problem(field, "is missing", None, f"give every request a {field}")
        for field in required
        if field not in record
    ]
    # The remaining fields are checked although some are bad; those get stand-ins that pass.
    unchecked = {field for problem in problems for field in _spoils(problem.field)}
    if "source" in unchecked:
        fields["source"] = "source"
    if "dest" in unchecked:
        fields["dest"] = ("one", "other") if task == "debias" else "dest"
    if "ratios" in unchecked:
        fields.pop("ratios", None)
    fields.setdefault("dest", "")
    fields.setdefault("seed", DEFAULT_SEED)
    own = DEBIAS_TEMPLATES if task == "debias" else OBJECT_TEMPLATES
    fields.setdefault("templates", default_templates or own)
    if task == "debias" and fields["dest"]:
        count = len(fields["dest"])
        fields.setdefault("ratios", (1 / count,) * count)
    try:
        request = EditRequest(**fields, origin=f"{path}:{record.line}")
    except RequestError as error:
        problems += [problem for problem in error.problems if problem.field not in unchecked]
    else:
        if not problems:
            return request
    for problem in problems:
        name = record.names.get(problem.field, problem.field)
        failures.add(record.line_of(problem.field), problem._replace(field=name))
    return None


def _clean(value: Any, field: str, record: Record, failures: Failures) -> Any:
    """A name, or several, without what nobody can see at the ends."""
    if not isinstance(value, str):
        return tuple(_clean(name, field, record, failures) for name in value)
    named = record.names.get(field, field)
    return clean_name(value, named, record.line_of(field), failures)


def _spoils(field: str) -> tuple[str, ...]:
    """A bad field and those that can only be checked with it."""
    with_it = {
        "task": ("dest", "ratios"),
        "dest": ("ratios",),
        "templates": ("seeds",),
        "validation_templates": ("seeds",),
    }
    return (field, *with_it.get(field, ()))


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _FieldError(f"is {_kind(value)}, not text", "put it in quotes")
    return value.strip()


def _task(value: Any) -> str:
    task = _text(value).lower()
    if task not in TASKS:
        raise _FieldError("is unknown", f"choose one of {', '.join(TASKS)}")
    return task


def _dest(value: Any) -> str | tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list | tuple) else _text(value)


def _templates(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip() in TEMPLATE_SETS:
        return TEMPLATE_SETS[value.strip()]
    if isinstance(value, str) and SLOT not in value and not value.lstrip().startswith("["):
        fix = f"write exactly one {{}} for the name, or a set: {', '.join(TEMPLATE_SETS)}"
        raise _FieldError("has no slot {}", fix)
    return _texts(value)


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts; as text it is a JSON or Python list, or parts separated by `|`."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            return _texts(_literal_list(value))
        return tuple(part.strip() for part in value.split("|") if part.strip())
    if not isinstance(value, list | tuple):
        raise _FieldError(f"is {_kind(value)}, not a list", "write a list of texts")
    for item in value:
        if isinstance(item, dict) and not item:
            raise _FieldError("has a bare {}, which YAML reads as an object", "quote it: '{}'")
        if not isinstance(item, str):
            raise _FieldError(f"holds {_kind(item)}, not text", "put each entry in quotes")
    return tuple(value)


def _literal_list(text: str) -> list[Any]:
    """A list written in text: JSON, or a Python literal as in the published files."""
    value = literal_list(text)
    if value is None:
        raise _FieldError("is not a list", 'write ["...", "..."]')
    return value


def _integer(value: Any) -> int:
    """An integer; the published files write some of them as text."""
    if is_integer(value):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
        return int(value)
    raise _FieldError(f"is {_kind(value)}, not an integer", "give an integer")


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(_integer(item) for item in _items(value))


def _number(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value if number else _text(value))
    except (ValueError, OverflowError):
        raise _FieldError("is not a number", "give a number") from None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(item) for item in _items(value))


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            return _literal_list(value)
        return [part for part in value.split("|") if part.strip()]
    if not isinstance(value, list | tuple):
        raise _FieldError(f"is {_kind(value)}, not a list", "write a list")
    return value


def _kind(value: Any) -> str:
    names = {bool: "a yes/no value", int: "a number", float: "a number", dict: "an object"}
    names |= {Record: "an object", Listed: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "source": _text,
        "dest": _dest,
        "task": _task,
        "templates": _templates,
        "seed": _integer,
        "weight": _number,
        "ratios": _numbers,
        "source_id": _integer,
        "dest_id": _integer,
        "seeds": _integers,
        "validation_templates": _texts,
        "image_paths": _texts,
    }
)
