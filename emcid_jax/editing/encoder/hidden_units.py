"""Two hidden units that make a ramp out of a gate: 0 below its threshold, 1 above, no more.

With `s` the gate's score, `theta` its threshold and `act` the encoder's activation,

    r = (act(u) - act(u - HEIGHT)) / HEIGHT,     u = HEIGHT (s - theta) / WIDTH + HEIGHT.

GELU and quick GELU are 0 far below 0 and the identity far above, so `r` is 0 for `s` below
`theta - WIDTH` and 1 above `theta`, whatever the overshoot. Both units have the same row of `fc1`;
their columns of `fc2` are the answer and its negative, divided by HEIGHT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from emcid_jax.models.text.transformer import ACTIVATIONS, Activation
from emcid_jax.runtime.errors import UserError

HEIGHT = 16.0
"""So that a gate that is just about to open gives little: both activations dip below 0 there, quick
GELU by 0.1, and the ramp by 0.1 / HEIGHT."""
WIDTH = 0.05
"""Scores between the ramp's ends."""
GRID = HEIGHT / 8
"""Biases are multiples of this: float16 and bfloat16 hold them exactly, and the step between the
two units of a pair with them."""

PER_GATE = 2
"""Hidden units per gate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Room:
    """Hidden units of the MLP that make room for an edit's, in float32: what leaves the MLP."""

    places: Int[np.ndarray, " unit"]
    """Which they are; the edit's units take these places in this order."""
    rows: Float[np.ndarray, "unit dim"]
    """Their rows of `fc1`."""
    biases: Float[np.ndarray, " unit"]
    """Their biases of `fc1`."""
    columns: Float[np.ndarray, "dim inner"]
    """What is added to `fc2`: it takes their columns out, and fits the others to what they gave."""
    shift: Float[np.ndarray, " dim"]
    """What is added to the bias of `fc2`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Gates as hidden units of one block, in float32: what is added to its MLP."""

    block: int
    rows: Float[np.ndarray, "gate dim"]
    """Row of `fc1`, the same for both units of a gate."""
    biases: Float[np.ndarray, "gate unit"]
    """Bias of `fc1`, of the first and the second unit."""
    answers: Float[np.ndarray, "gate dim"]
    """Column of `fc2` of the first unit; the second has its negative."""
    room: Room | None = None
    """Units that these replace; without it the MLP gets wider."""

    @property
    def width(self) -> int:
        """Hidden units that the encoder gets more."""
        return 0 if self.room else PER_GATE * len(self.rows)


def make_units(
    block: int,
    directions: Float[np.ndarray, "gate dim"],
    mean: Float[np.ndarray, " dim"],
    thresholds: Float[np.ndarray, " gate"],
    answers: Float[np.ndarray, "gate dim"],
) -> Units:
    """The units of gates that score `direction (x - mean)` and add `answer` from `threshold` on."""
    slope = HEIGHT / WIDTH
    offsets = np.einsum("gd,d->g", directions, mean) + thresholds
    first = np.round((HEIGHT - slope * offsets) / GRID) * GRID
    return Units(
        block,
        (slope * directions).astype(np.float32),
        np.stack([first, first - HEIGHT], axis=1).astype(np.float32),
        (answers / HEIGHT).astype(np.float32),
    )


def openness(
    units: Units, inputs: Float[np.ndarray, "token dim"], activation: Activation
) -> Float[np.ndarray, "token gate"]:
    """How far each gate's ramp is open where `fc1` reads `inputs`: 0 shut, 1 open."""
    inner = inputs @ units.rows.T
    height = units.biases[:, 0] - units.biases[:, 1]  # Of a file of an older version another one.
    first, second = (
        np.asarray(ACTIVATIONS[activation](jnp.asarray(inner + units.biases[:, unit])))
        for unit in range(PER_GATE)
    )
    return np.clip((first - second) / height, 0.0, 1.0)


def with_units(text_params: Mapping[str, Any], units: Units) -> dict[str, Any]:
    """The text encoder's parameters with the units: in their room, or behind the MLP's own. Then
    blocks that have none get units of zeros, for readers know one width for all blocks.

    `text_params` stay as they are. UserError if the encoder is another one than the units are of.
    """
    encoder = dict(text_params["text_model"]["encoder"])
    name = f"layers.{units.block}"
    dim = units.rows.shape[1]
    shape = encoder[name]["mlp"]["fc1"]["kernel"].shape if name in encoder else (0, 0)
    if shape[0] != dim or (units.room and units.room.columns.shape != shape):
        raise UserError(
            f"units of block {units.block} and width {dim} do not fit this text encoder; apply "
            "them to the model they were made for"
        )
    if units.room is not None:
        mlp = with_changes(encoder[name]["mlp"], changes(units))
        encoder[name] = dict(encoder[name]) | {"mlp": mlp}
    else:
        own = disk_arrays(units)
        none = {part: np.zeros_like(array) for part, array in own.items()}
        for key, layer in encoder.items():
            added = own if key == name else none
            encoder[key] = dict(layer) | {"mlp": _wider(layer["mlp"], added)}
    text_model = dict(text_params["text_model"]) | {"encoder": encoder}
    return dict(text_params) | {"text_model": text_model}


def changes(units: Units) -> dict[str, Float[np.ndarray, "..."]]:
    """What units add to the weights of an MLP whose width they keep, by name and in the layout on
    disk; nothing if they have no room."""
    if units.room is None:
        return {}
    room, own = units.room, disk_arrays(units)
    rows = np.zeros(room.columns.shape[::-1], np.float32)
    rows[room.places] = own["fc1.weight"] - room.rows
    biases = np.zeros(len(rows), np.float32)
    biases[room.places] = own["fc1.bias"] - room.biases
    columns = room.columns.copy()
    columns[:, room.places] += own["fc2.weight"]
    return {
        "fc1.weight": rows,
        "fc1.bias": biases,
        "fc2.weight": columns,
        "fc2.bias": room.shift,
    }


def disk_arrays(units: Units) -> dict[str, np.ndarray]:
    """The units' parts of `fc1.weight`, `fc1.bias` and `fc2.weight`, in their layout on disk."""
    signs = np.array([1.0, -1.0], np.float32)
    columns = (units.answers[:, None] * signs[:, None]).reshape(-1, units.answers.shape[1])
    return {
        "fc1.weight": np.repeat(units.rows, PER_GATE, axis=0),
        "fc1.bias": units.biases.reshape(-1),
        "fc2.weight": np.ascontiguousarray(columns.T),
    }


def with_changes(mlp: Mapping[str, Any], added: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """An MLP's parameters with changes added, which have the names and the layout on disk; each
    stays in its type, and `mlp` as it is."""
    new = dict(mlp)
    for name, change in added.items():
        layer, _, part = name.partition(".")
        part = "kernel" if part == "weight" else part
        old = new[layer][part]
        now = jnp.asarray((np.asarray(old, np.float64) + change.T).astype(old.dtype))
        new[layer] = dict(new[layer]) | {part: now}
    return new


def _wider(mlp: Mapping[str, Any], added: Mapping[str, np.ndarray]) -> dict[str, Any]:
    first, second = mlp["fc1"], mlp["fc2"]

    def joined(old: jax.Array, new: np.ndarray, axis: int) -> jax.Array:
        return jnp.concatenate([jnp.asarray(old), jnp.asarray(new, old.dtype)], axis=axis)

    return dict(mlp) | {
        "fc1": dict(first)
        | {
            "kernel": joined(first["kernel"], added["fc1.weight"].T, 1),
            "bias": joined(first["bias"], added["fc1.bias"], 0),
        },
        "fc2": dict(second) | {"kernel": joined(second["kernel"], added["fc2.weight"].T, 0)},
    }
