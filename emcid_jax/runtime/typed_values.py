"""Values from outside (settings, JSON) held against the annotations of a dataclass.

A field's annotation says its type and, as `Annotated[int, Range(1, 64)]`, its limits.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from emcid_jax.runtime.errors import UserError

T = TypeVar("T")


class Range(NamedTuple):
    """Limits of a number, both included unless `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether `value` lies inside; NaN does not."""
        number = typing.cast(float, value)
        return self.low < number < self.high if self.open else self.low <= number <= self.high

    def __str__(self) -> str:
        """The limits in words, for messages."""
        low, high = (">", "<") if self.open else (">=", "<=")
        parts = [f"{low} {self.low:g}"] if self.low > -math.inf else []
        return " and ".join([*parts, f"{high} {self.high:g}"] if self.high < math.inf else parts)


def section(values: Any, cls: type[T], name: str) -> T:
    """`values` as the dataclass `cls`; calls its `check()` if it has one.

    Missing fields take their defaults, integers pass for floats, lists for tuples.

    Args:
        values: a mapping from fields to values.
        cls: the dataclass.
        name: what the section is called in messages.

    Raises:
        UserError: an unknown or missing field, or one of another type or beyond its limits: one
            line with field, value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {shown(values)}; it must be a section of settings")
    kinds = typing.get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(typing.cast(Any, cls))
    known = [field.name for field in fields]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{name}.{key} is unknown; {hint}allowed: {', '.join(known)}")
    for field in fields:
        if field.name not in values and field.default is field.default_factory:  # Both missing.
            raise UserError(f"{name}.{field.name} is missing; it must be there")
    found: Any = cls(**{key: convert(values[key], kinds[key], f"{name}.{key}") for key in values})
    if hasattr(found, "check"):
        found.check()
    return found


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` checked against the annotation `kind`; UserError calls it `name`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return section(value, kind, name)
    if origin is Annotated:
        result = convert(value, arguments[0], name)
        for limits in arguments[1:]:
            if result not in limits:
                raise UserError(f"{name} is {shown(value)}; it must be {limits}")
        return result
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(repr, arguments))
            raise UserError(f"{name} is {shown(value)}; allowed: {allowed}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} is {shown(value)}; it must be a tuple")
        return tuple(convert(x, arguments[0], f"{name}[{i}]") for i, x in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        return None if value is None else convert(value, arguments[0], name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{name} is {shown(value)}; it must be {_WORDS[kind]}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it must be finite")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def shown(value: object) -> str:
    """A value in a message: on one line, and long ones cut."""
    text = f"a number of {value.bit_length()} bits" if _is_huge(value) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"


def _is_huge(value: object) -> typing.TypeGuard[int]:
    return isinstance(value, int) and value.bit_length() > 1000  # Python prints no longer ones.
