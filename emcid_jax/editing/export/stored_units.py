"""Concept units as an edit file holds them: by name, and checked when they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from emcid_jax.editing.encoder.hidden_units import PER_GATE, Room, Units
from emcid_jax.models.text.clip import MLP
from emcid_jax.runtime.errors import shown

_NAME = MLP.format("{}", "units.{}")
_ROWS = re.compile(_NAME.replace(".", r"\.").format(r"(\d+)", "rows"))
_PARTS = ("rows", "biases", "answers")
_ROOM = ("places", "rows", "biases", "columns", "shift")
"""Of units that replace others, see `hidden_units.Room`."""


def packed(units: Units) -> dict[str, np.ndarray]:
    """The tensors of units by name: float32, and `places` int32."""
    found = {_NAME.format(units.block, part): getattr(units, part) for part in _PARTS}
    for part in _ROOM if units.room else ():
        found[_room(units.block, part)] = getattr(units.room, part)
    return found


def unpacked(arrays: Mapping[str, np.ndarray]) -> Units | None:
    """The units that are among the tensors of an edit, if any."""
    for name in arrays:
        if found := _ROWS.fullmatch(name):
            block = int(found[1])
            parts = {part: arrays[_NAME.format(block, part)] for part in _PARTS}
            names = {part: _room(block, part) for part in _ROOM}
            room = {part: arrays[name] for part, name in names.items() if name in arrays}
            return Units(block, **parts, room=Room(**room) if room else None)
    return None


def without(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors that are not of units; ValueError if those of units do not fit each other."""
    units = {name: array for name, array in arrays.items() if ".mlp.units." in name}
    if units:
        blocks = [int(found[1]) for name in units if (found := _ROWS.fullmatch(name))]
        names = [_NAME.format(block, part) for block in blocks for part in _PARTS]
        inside = [_room(block, part) for block in blocks for part in _ROOM]
        if len(blocks) != 1 or units.keys() not in ({*names}, {*names, *inside}):
            raise ValueError(f"its units are {shown(sorted(units))}; one block has {_PARTS}")
        floats = [array for name, array in units.items() if name != inside[0]]
        if not all(one.dtype == np.float32 and np.isfinite(one).all() for one in floats):
            raise ValueError("its units are not finite float32")
        own, room = ([units[name] for name in some if name in units] for some in (names, inside))
        if not _fit(*own) or (room and not _has_room(own[0], *room)):
            raise ValueError("its units do not fit each other")
    return {name: array for name, array in arrays.items() if name not in units}


def _room(block: int, part: str) -> str:
    return _NAME.format(block, f"room.{part}")


def _fit(rows: np.ndarray, biases: np.ndarray, answers: np.ndarray) -> bool:
    """Whether the parts of units have shapes that belong together."""
    return rows.ndim == 2 and rows.shape == answers.shape and biases.shape == (len(rows), PER_GATE)


def _has_room(
    units: np.ndarray,
    places: np.ndarray,
    rows: np.ndarray,
    biases: np.ndarray,
    columns: np.ndarray,
    shift: np.ndarray,
) -> bool:
    """Whether a room is for just the units with these rows."""
    count, dim = PER_GATE * len(units), units.shape[1]
    distinct = np.unique(places)
    return (
        places.dtype == np.int32
        and places.shape == biases.shape == distinct.shape == (count,)
        and rows.shape == (count, dim)
        and shift.shape == (dim,)
        and columns.ndim == 2
        and len(columns) == dim
        and not np.any((distinct < 0) | (distinct >= columns.shape[1]))
    )
