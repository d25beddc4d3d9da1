"""How every `config.json` of a model is read: types, limits, defaults, refusals.

What a field may hold is said once, by the annotation of the dataclass that it becomes; the limits
are here. They lie far above every published model and stop absurd sizes before anything is built.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.runtime.typed_values import Length, Range, convert

T = TypeVar("T")

Width = Annotated[int, Range(1, 2**16)]
"""Of a vector: hidden states, channels, keys."""
Depth = Annotated[int, Range(1, 128)]
"""Blocks of a transformer, or layers within a block."""
Heads = Annotated[int, Range(1, 1024)]
Rows = Annotated[int, Range(1, 2**21)]
"""Of a table: tokens, labels."""
TokenId = Annotated[int, Range(0, 2**21)]
Positions = Annotated[int, Range(1, 4096)]
Pixels = Annotated[int, Range(1, 8192)]
"""Along one side of an image or of latents."""
Channels = Annotated[int, Range(1, 256)]
"""Of an image or of latents."""
Fraction = Annotated[float, Range(0, 1)]
PerBlock = Length(1, 8)
"""Resolutions of a UNet or autoencoder."""
MOST_LAYERS = 64
"""Of all blocks of a UNet or autoencoder together; Stable Diffusion XL has 26."""


def parse(cls: type[T], values: Mapping[str, Any], source: object) -> T:
    """The dataclass `cls` from the entries of `values` that are its fields.

    Others are left out, and missing ones take their defaults; each is checked against
    the annotation of its field. Calls `check(source)` of the result.

    Args:
        cls: the dataclass; it has `check`.
        values: the content of a JSON file.
        source: the file, for messages.

    Raises:
        UserError: one line with file, field, value and what is allowed.
    """
    kinds = typing.get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    found: Any = cls(
        **{
            name: convert(values[name], kinds[name], f"{source}: {name}")
            for name in fields
            if name in values
        }
    )
    found.check(source)
    return found


def refuse_unsupported(
    source: object, config: Mapping[str, Any], known: Sequence[str], required: Mapping[str, Any]
) -> None:
    """Refuses a config that asks for something the modules do not compute.

    Args:
        source: the file, for the message.
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
                raise UserError(f"{source}: {key}={shown(value)} is not supported; use {choices}")
        elif key not in known and not key.startswith("_") and value not in (None, False):
            raise UserError(
                f"{source}: unknown key {shown(key)[1:-1]}={shown(value)}; remove it or set it null"
            )


def given(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The entries of `config` among `fields` that are not null: null is diffusers' default."""
    return {field: config[field] for field in fields if config.get(field) is not None}


def per_block(source: object, field: str, value: T | Sequence[T], blocks: int) -> tuple[T, ...]:
    """One value per resolution from a single value or a list of that length.

    Raises:
        UserError: a list of another length.
    """
    if not isinstance(value, (list, tuple)):
        return (value,) * blocks  # pyright: ignore[reportReturnType]
    if len(value) != blocks:
        raise UserError(
            f"{source}: {field} has {len(value)} entries; give one for each of {blocks} blocks"
        )
    return tuple(value)


def require_types(source: object, field: str, value: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises UserError if a block type is not one of `allowed`."""
    for block_type in value:
        if block_type not in allowed:
            raise UserError(
                f"{source}: {field} has {shown(block_type)}, which is not supported; "
                f"use {' or '.join(allowed)}"
            )


def require_few_layers(source: object, fields: str, layers: int) -> None:
    """Raises UserError if `fields` ask for more layers than MOST_LAYERS."""
    if layers > MOST_LAYERS:
        raise UserError(
            f"{source}: {fields} ask for {layers} layers on the way down; at most {MOST_LAYERS} "
            "are built"
        )


def require_groups(source: object, channels: Sequence[int], groups: int) -> None:
    """Raises UserError if a channel count is not a multiple of the group count."""
    for count in channels:
        if count % groups:
            raise UserError(
                f"{source}: block_out_channels has {count}, not a multiple of "
                f"norm_num_groups={groups}"
            )
