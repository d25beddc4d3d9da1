"""The page of all settings, made from the dataclasses that read them."""

from __future__ import annotations

import collections.abc
import dataclasses
import html
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from emcid_jax.config.parse import field_documents
from emcid_jax.config.unread import leaves

_WORDS = {
    int: "whole number",
    float: "number",
    bool: "`True` or `False`",
    str: "text",
    Any: "anything",
    types.NoneType: "`None`",
}
_COLUMNS = "| setting | type | default | meaning |\n|---|---|---|---|"


class Task(NamedTuple):
    """A task of the command line: its settings, and those that it has no use for."""

    name: str
    config: type
    unread: Sequence[str]


def page(tasks: Sequence[Task]) -> str:
    """Markdown: a heading for every task and for every section of settings that tasks share."""
    sections: dict[type, str] = {}
    parts = []
    for task in tasks:
        title = f"Task `{task.name}`"
        parts.append(_part(title, task.config, "", sections))
        if task.unread:
            names = ", ".join(f"`{name}`" for name in task.unread)
            parts.append(f"This task does not read {names}.")
        sections.setdefault(task.config, title)
        parts += _new_sections(task.config, "", sections)
    return "\n\n".join(
        [
            "# Settings",
            "Every setting of every task. Give it on the command line as `--config.NAME=VALUE`, or "
            "in a config file. This page is made from the dataclasses that read the settings.",
            *parts,
        ]
    )


def type_in_words(kind: Any) -> str:
    """An annotation as a reader would say it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        limits = [str(limit) for limit in arguments[1:]]
        return " ".join([type_in_words(arguments[0]), " and ".join(limits)])
    if origin is Literal:
        return " or ".join(f"`{value!r}`" for value in arguments)
    if origin is tuple:
        inner = [type_in_words(one) for one in arguments if one is not ...]
        return f"tuple of {inner[0]}" if ... in arguments else f"tuple: {', '.join(inner)}"
    if origin is collections.abc.Mapping:
        return f"mapping of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_in_words, arguments))
    return _WORDS[kind]


def _new_sections(cls: type, prefix: str, sections: dict[type, str]) -> Iterator[str]:
    """The sections in `cls` that have no heading yet, deeper ones after the one that holds them."""
    for name, kind in _kinds(cls).items():
        if not dataclasses.is_dataclass(kind) or kind in sections:
            continue
        label = f"{prefix}{name}"
        kind = typing.cast(type, kind)
        sections[kind] = title = f"Section `{label}`"
        yield _part(title, kind, f"{label}.", sections)
        yield from _new_sections(kind, f"{label}.", sections)


def _part(title: str, cls: type, prefix: str, sections: Mapping[type, str]) -> str:
    """Heading, what the settings are for, and their table."""
    documents, rows = field_documents(cls), []
    for field in dataclasses.fields(cls):
        kind = _kinds(cls)[field.name]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            heading = sections.get(typing.cast(type, kind), f"Section `{name}`")
            link = heading.lower().replace("`", "").replace(".", "").replace(" ", "-")
            parts = [_cell(documents.get(field.name, "")), f"See [{heading}](#{link})"]
            about = f"{' '.join(parts)}{_changed(_default(field))}".strip()
            rows.append(f"| `{name}` | section | | {about} |")
        else:
            about = _cell(documents.get(field.name, ""))
            words = _cell(type_in_words(kind))
            rows.append(f"| `{name}` | {words} | {_cell(f'`{_default(field)!r}`')} | {about} |")
    about = _linked(" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()))
    return "\n\n".join([f"## {title}", about, "\n".join([_COLUMNS, *rows])])


def _changed(section: Any) -> str:
    """The defaults that a task has in place of the section's own."""
    found = [
        _cell(f"`{name}` is `{value!r}`")
        for name, value, usual in leaves(section, type(section)())
        if value != usual
    ]
    return f"; here {', '.join(found)}." if found else "."


def _kinds(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _cell(text: str) -> str:
    """Text of a docstring as a table's cell: nothing in it is markup but `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        f"<code>{_plain(part[1:-1])}</code>" if part.startswith("`") else _linked(_plain(part))
        for part in parts
    )


def _plain(text: str) -> str:
    escaped = html.escape(text, quote=False)
    return re.sub(r"[|*_\[\]{}\\`~]", lambda match: f"&#{ord(match[0])};", escaped)


def _linked(text: str) -> str:
    """Pages that a docstring names, as links."""
    text = re.sub(r"docs/([\w&#;]+)\.md", lambda m: f"docs/{html.unescape(m[1])}.md", text)
    return re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", text)
