"""What the readers of diffusers' `config.json` share: defaults, per-block lists, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from emcid_jax.runtime.errors import UserError

T = TypeVar("T")


def refuse_unsupported(
    name: str, config: Mapping[str, Any], known: Sequence[str], required: Mapping[str, Any]
) -> None:
    """Refuses a config that asks for something the modules do not compute.

    Args:
        name: the class the config belongs to, for the message.
        config: the content of `config.json`.
        known: keys that are read or make no difference to inference.
        required: keys whose value must be the given one (a tuple: one of those) if present.

    Raises:
        UserError: a `required` key has another value, or an unknown key is switched on. Unknown
            keys that are null, false or start with an underscore are ignored.
    """
    for key, value in config.items():
        if key in required:
            allowed = required[key] if isinstance(required[key], tuple) else (required[key],)
            if value not in allowed:
                choices = " or ".join(repr(choice) for choice in allowed)
                raise UserError(f"{name} config: {key}={value!r} is not supported; use {choices}")
        elif key not in known and not key.startswith("_") and value not in (None, False):
            raise UserError(f"{name} config: unknown key {key}={value!r}; remove it or set it null")


def given(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The entries of `config` among `fields` that are not null, lists as tuples."""
    values = {field: config[field] for field in fields if config.get(field) is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def per_block(name: str, field: str, value: T | Sequence[T], blocks: int) -> tuple[T, ...]:
    """One value per resolution from a single value or a list of that length.

    Raises:
        UserError: a list of another length.
    """
    if not isinstance(value, (list, tuple)):
        return (value,) * blocks  # pyright: ignore[reportReturnType]
    if len(value) != blocks:
        raise UserError(
            f"{name} config: {field} has {len(value)} entries; give one for each of {blocks} blocks"
        )
    return tuple(value)


def require_types(name: str, field: str, value: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises UserError if a block type is not one of `allowed`."""
    for block_type in value:
        if block_type not in allowed:
            raise UserError(
                f"{name} config: {field} has {block_type!r}, which is not supported; "
                f"use {' or '.join(allowed)}"
            )


def require_groups(name: str, channels: Sequence[int], groups: int) -> None:
    """Raises UserError if a channel count is not a multiple of the group count."""
    for count in channels:
        if count % groups:
            raise UserError(
                f"{name} config: block_out_channels has {count}, not a multiple of "
                f"norm_num_groups={groups}"
            )
