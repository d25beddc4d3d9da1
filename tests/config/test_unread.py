"""A setting that is accepted is read: every other one is refused by name, in every task."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import typing
from pathlib import Path
from typing import Any

import pytest

import emcid_jax
from emcid_jax import config as settings
from emcid_jax.config.unread import is_unread, leaves
from emcid_jax.main import TASKS
from emcid_jax.runtime.errors import UserError

SINGLE = {"benchmark", "task"}
"""Fields of one value each."""


def unread(task: str) -> tuple[str, ...]:
    return getattr(importlib.import_module(f"emcid_jax.tasks.{task}"), "UNREAD", ())


def default(task: str) -> Any:
    return importlib.import_module(f"emcid_jax.tasks.{task}").Config()


def changed(config: Any, field: str) -> Any:
    """`config` with another value of `field`, of whatever type."""
    name, _, rest = field.partition(".")
    value = getattr(config, name)
    if rest:
        return dataclasses.replace(config, **{name: changed(value, rest)})
    kind = typing.get_type_hints(type(config))[name]
    if typing.get_origin(kind) is typing.Literal:
        value = next(one for one in typing.get_args(kind) if one != value)
    elif isinstance(value, bool):
        value = not value
    elif isinstance(value, int | float):
        value = value + 1
    elif isinstance(value, str):
        value = f"{value}x"
    else:
        one, *_ = typing.get_args(kind)
        value = (*value, *(typing.get_args(one)[:1] or [99]))
    return dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_does_not_read_is_refused_by_name(task: str) -> None:
    config = default(task)
    settings.refuse_unread(config, unread(task), task)
    for field, _, _ in leaves(config, config):
        if is_unread(field, unread(task)) and field.rpartition(".")[2] not in SINGLE:
            message = rf"config\.{field} is .*, but task '{task}' does not read it"
            with pytest.raises(UserError, match=message):
                settings.refuse_unread(changed(config, field), unread(task), task)


@pytest.mark.parametrize("task", TASKS)
def test_unread_names_are_fields(task: str) -> None:
    config = default(task)
    fields = [field for field, _, _ in leaves(config, config)]
    for name in unread(task):
        assert any(is_unread(field, (name,)) for field in fields), name


def test_every_field_is_read_somewhere() -> None:
    """A field that nobody reads has no place in the settings."""
    package = Path(emcid_jax.__file__).parent
    read: set[str] = set()
    for path in package.rglob("*.py"):
        tree: ast.AST = ast.parse(path.read_text("utf8"))
        if path.name == "schema.py":  # `check` is no use of a field, but settings made of it are.
            made = [node for node in ast.walk(tree) if getattr(node, "name", "") == "of"]
            tree = ast.Module(made, [])
        if path.parent.name != "config" or path.name == "schema.py":
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read.add(node.value)  # main reads some by name, before there are settings.
    for task in TASKS:
        config = default(task)
        for field, _, _ in leaves(config, config):
            if not is_unread(field, unread(task)):
                assert {field.rpartition(".")[2]} & (read | SINGLE), f"{task}: {field}"
