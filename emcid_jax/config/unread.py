"""Settings that a task has no use for: refused, so that nobody waits for an effect of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from emcid_jax.runtime.errors import UserError


def refuse_unread(config: Any, unread: Sequence[str], task: str) -> None:
    """UserError if a field that `task` does not read is set to anything but its default.

    Args:
        config: the task's settings.
        unread: the fields, and sections of which none is read, e.g. `("model.dtype", "debias")`.
        task: name of the task.
    """
    default = type(config)()
    for field, value, usual in leaves(config, default):
        if value != usual and is_unread(field, unread):
            raise UserError(
                f"config.{field} is {value!r}, but task {task!r} does not read it; leave it at "
                f"{usual!r}"
            )


def is_unread(field: str, unread: Sequence[str]) -> bool:
    """Whether `field` is one of `unread`, or in a section that is."""
    return any(field == name or field.startswith(f"{name}.") for name in unread)


def leaves(config: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value and default of every field that is no section."""
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, usual, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, usual
