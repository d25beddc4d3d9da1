"""A config file's values as frozen dataclasses, and their documentation for --help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from emcid_jax.config import renamed
from emcid_jax.runtime.typed_values import section

Config = TypeVar("Config")


def from_config_dict(values: Mapping[str, Any], cls: type[Config], name: str = "config") -> Config:
    """`values` as the frozen dataclass `cls`.

    Missing fields take their defaults, integers pass for floats, lists for tuples. Calls `check()`
    of every section that has one. UserError names the field, the value and what is allowed, or the
    new name of a field that had another.
    """
    renamed.refuse(values, name)
    base = values.get("base")
    if isinstance(base, Mapping) and values.get("run") == base.get("run"):
        values = {field: value for field, value in values.items() if field != "run"}
    return section(values, cls, name)


def to_config_dict(config: Any) -> Any:
    """A dataclass of settings as the ConfigDict that a config file's `get_config` returns.

    Where the section `run` is in `base`, it is one of both: `--config.run` is right for every task.
    """
    from ml_collections import ConfigDict

    values: Any = ConfigDict(dataclasses.asdict(config))
    if "run" not in values and "base" in values:
        values.run = values.base.run
    return values


def describe(cls: type, name: str = "config") -> str:
    """Every field with its default and its documentation, one a line, for `--help`."""
    lines = []
    documents = field_documents(cls)
    for field in dataclasses.fields(cls):
        label = f"{name}.{field.name}"
        if dataclasses.is_dataclass(field.default):
            lines.append(f"\n{label}: {inspect.getdoc(type(field.default))}")
            lines.append(describe(type(field.default), label))
        else:
            lines.append(f"  {label} = {field.default!r}")
            lines.append(f"      {documents.get(field.name, '')}")
    return "\n".join(lines)


def field_documents(cls: type) -> dict[str, str]:
    """Field name -> the string under it; Python keeps these only in the source."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(cls)).body[0]).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
