"""The page of settings: complete, with the defaults and limits that the program uses."""

from __future__ import annotations

import html
import importlib
import re
from typing import Annotated, Literal

import pytest

from emcid_jax import main
from emcid_jax.config import Range
from emcid_jax.config.unread import leaves
from website.settings_page import Task, page, type_in_words


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    modules = [importlib.import_module(f"emcid_jax.tasks.{name}") for name in main.TASKS]
    named = zip(main.TASKS, modules, strict=True)
    return [Task(name, module.Config, getattr(module, "UNREAD", ())) for name, module in named]


@pytest.fixture(scope="module")
def rows(tasks: list[Task]) -> dict[str, set[tuple[str, ...]]]:
    """Name -> types, defaults and meanings, as a reader sees them; tasks may share a name."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for line in page(tasks).splitlines():
        if line.startswith("| `"):
            cells = [html.unescape(re.sub(r"</?code>|`", "", c)).strip() for c in line.split("|")]
            _, name, *rest, _ = cells
            found.setdefault(name, set()).add(tuple(rest))
    return found


def test_every_setting_of_every_task_is_there_with_its_default(
    tasks: list[Task], rows: dict[str, set[tuple[str, ...]]]
) -> None:
    """Fields by the walk that refuses unread settings, which knows nothing of the page."""
    shown = {(name.split(".")[-1], cells[1]) for name, found in rows.items() for cells in found}
    other = {cells[2] for found in rows.values() for cells in found}
    missing = [
        f"{task.name}: {name} = {value!r}"
        for task in tasks
        for name, value, _ in leaves(task.config(), task.config())
        if (name.split(".")[-1], repr(value)) not in shown
        and not any(f"{name.split('.', 1)[-1]} is {value!r}" in about for about in other)
    ]
    assert not missing


def test_a_setting_as_a_reader_sees_it(rows: dict[str, set[tuple[str, ...]]]) -> None:
    assert rows["stage_one.steps"] == {("whole number >= 1", "100", "Adam steps per concept.")}
    silent = {name for name, found in rows.items() if any(not cells[2].strip() for cells in found)}
    assert not silent


def test_nothing_of_a_docstring_is_markup(tasks: list[Task]) -> None:
    text = page(tasks)
    assert "&#124;delta&#124; &lt;= factor &#42;" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in tables} == {5}


def test_links_lead_to_headings(tasks: list[Task]) -> None:
    text = page(tasks)
    headings = {
        re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links
    assert set(links) <= headings


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[float, Range(0.0, open=True), Range(high=1.0)], "number > 0 and <= 1"),
        (Literal["a", ""], "`'a'` or `''`"),
        (tuple[int, ...], "tuple of whole number"),
        (str | None, "text or `None`"),
    ],
)
def test_types_in_words(kind: object, words: str) -> None:
    assert type_in_words(kind) == words
