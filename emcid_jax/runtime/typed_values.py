"""Values from outside (settings, JSON) checked against the annotations of a dataclass.

A field's annotation says its type and, as `Annotated[int, Range(1, 64)]`, its limits. One reader
decides for the settings of a run, configs of models and the headers of this package's own files.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from emcid_jax.runtime.errors import UserError, shown

T = TypeVar("T")

ANY_NUMBER = "NaN and infinity too"
"""As in `Annotated[float, ANY_NUMBER]`: a figure that is only reported. Else numbers are finite."""


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


class Length(NamedTuple):
    """Limits of how many entries a list may have, both included."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        """Whether `value` has as many entries."""
        return self.low <= len(typing.cast(Any, value)) <= self.high

    def __str__(self) -> str:
        """The limits in words, for messages."""
        return f"a list of {self.low} to {self.high} entries"


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
    """`value` checked against the annotation `kind`; UserError calls it `name`.

    Of a union, a list is checked against its tuple, anything else against its other member.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return section(value, kind, name)
    if origin is Annotated:
        if ANY_NUMBER in arguments and isinstance(value, float):
            return value
        result = convert(value, arguments[0], name)
        for limits in arguments[1:]:
            if limits is not ANY_NUMBER and result not in limits:
                raise UserError(f"{name} is {shown(value)}; it must be {limits}")
        return result
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            allowed = ", ".join(map(repr, arguments))
            raise UserError(f"{name} is {shown(value)}; allowed: {allowed}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} is {shown(value)}; it must be a list or tuple")
        if arguments[-1] is ... and len(arguments) == 2:
            arguments = arguments[:1] * len(value)
        if len(arguments) != len(value):
            raise UserError(f"{name} is {shown(value)}; it must have {len(arguments)} entries")
        pairs = enumerate(zip(value, arguments, strict=True))
        return tuple(convert(x, of, f"{name}[{i}]") for i, (x, of) in pairs)
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {shown(value)}; it must be a mapping")
        pairs = ((convert(k, arguments[0], name), v) for k, v in value.items())
        return {k: convert(v, arguments[1], f"{name}.{k}") for k, v in pairs}
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        members = [member for member in arguments if member is not types.NoneType]
        lists = [member for member in members if "tuple" in str(member)]
        rest = [member for member in members if member not in lists]
        likely = lists if isinstance(value, list | tuple) else rest
        return convert(value, (likely or members)[0], name)
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{name} is {shown(value)}; it must be {_WORDS[kind]}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it must be finite")
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
