"""A text encoder's weights as a model folder stores them, and an edit added to them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from emcid_jax.editing.encoder.hidden_units import Units, disk_arrays
from emcid_jax.editing.export.edit_file import EditFile
from emcid_jax.models.text.clip import MLP, disk_name
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.models.weights.params import params_hash
from emcid_jax.models.weights.shards import head_file, weight_files
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.casting import in_type
from emcid_jax.storage.checkpoints import holds_weights
from emcid_jax.storage.files import open_to_read

_WORDS = {FIRST: "text encoder", SECOND: "second text encoder"}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWeights:
    """What a text encoder's folder holds of one variant."""

    head: Path
    """The file that tools look for: the weights, or the index of their shards."""
    files: dict[Path, dict[str, np.ndarray]]
    """Each file's tensors under its own names, in their stored types."""
    content: dict[Path, bytes]
    """Each file as it is."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All tensors."""
        return {name: array for part in self.files.values() for name, array in part.items()}

    def edited(self, edit: EditFile) -> dict[Path, bytes]:
        """The files that change, with the edit in them; other bytes stay. See `add_deltas`."""
        arrays = add_deltas(self.arrays, edit)
        found = {
            file: _replaced(self.content[file], part, arrays) for file, part in self.files.items()
        }
        return {file: now for file, now in found.items() if now != self.content[file]}


def read_weights(folder: Path, variant: str = "", part: str = FIRST) -> StoredWeights:
    """A text encoder's weights of a model in diffusers' layout, by the rules of `weight_files`.

    UserError if there is no such encoder or variant, or if a file is damaged.
    """
    place = folder / part
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give a model folder in diffusers' layout")
    if holds_weights(folder):
        raise UserError(
            f"{folder}: its weights are an Orbax checkpoint, which an edit file is not added to; "
            "solve the bank for it (task bank, operation solve), or edit the model it was made from"
        )
    content = {}
    for file in weight_files(place, variant):
        with open_to_read(file) as stream:
            content[file] = stream.read()
    files = {file: _loaded(file, data) for file, data in content.items()}
    return StoredWeights(head_file(place, variant), files, content)


def require_base(
    arrays: Mapping[str, np.ndarray],
    ledger: Mapping[str, Any],
    source: object,
    force: bool,
    part: str = FIRST,
) -> None:
    """UserError, unless `force`, if the edit was made for other weights than those of `source`.

    `arrays` are those of its text encoder `part`.
    """
    found, base = weights_hash(arrays), ledger["base"][part]
    if found != base and not force:
        about = ledger if part == FIRST else ledger.get("encoders", {}).get(part, {})
        already = " (it has this edit already)" if found == about.get("edited") else ""
        raise UserError(
            f"{source}: {_WORDS[part]} {found[:12]} is not the one that the edit was made for, "
            f"{base[:12]}{already}; solve the bank for this model (task bank, operation solve), or "
            "--config.force=True adds the edit all the same"
        )


def weights_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """`params_hash` of a text encoder's float32 parameters, from what its files hold."""
    named = {
        tuple(disk_name(name).split(".")): array.astype(np.float32)
        for name, array in arrays.items()
        if not name.endswith(".position_ids")
    }
    return params_hash(unflatten_dict(named))


def add_deltas(arrays: Mapping[str, np.ndarray], content: EditFile) -> dict[str, np.ndarray]:
    """The tensors with every dW added, each in its own type; all else is shared.

    UserError if a weight is missing, of another shape, or too small a type for its new values.
    """
    stored = {disk_name(name): name for name in arrays}
    edited = dict(arrays)
    for weight, delta in content.changes().items():
        name = stored.get(weight)
        if name is None or arrays[name].shape != delta.shape:
            raise UserError(
                f"weight edit: {weight} of shape {delta.shape} is not in this text encoder; apply "
                "the edit to the model it was made for"
            )
        edited[name] = in_type(
            arrays[name].astype(np.float64) + delta, arrays[name].dtype, f"weight edit: {name}"
        )
    if (units := content.units()) is not None and units.width:
        edited |= _wider(edited, stored, units)
    return edited


def _wider(
    arrays: Mapping[str, np.ndarray], stored: Mapping[str, str], units: Units
) -> dict[str, np.ndarray]:
    """The MLPs of all blocks with room for the units, which stand in one of them."""
    added, changed = disk_arrays(units), {}
    mine = MLP.format(units.block, "")
    for name in stored:
        part = name.partition(".mlp.")[2]
        if part not in added:
            continue
        old, new = arrays[stored[name]], added[part]
        axis = 1 if part == "fc2.weight" else 0
        if old.ndim == 2 and old.shape[1 - axis] != units.rows.shape[1]:
            raise UserError(
                f"weight edit: {name} has shape {old.shape}, units are of width "
                f"{units.rows.shape[1]}; apply the edit to the model it was made for"
            )
        new = new if name == mine + part else np.zeros_like(new)
        new = in_type(new, old.dtype, f"weight edit: {name}")
        changed[stored[name]] = np.concatenate([old, new], axis=axis)
    if not any(name.startswith(mine) for name in stored):
        raise UserError(
            f"weight edit: {mine[:-1]} is not in this text encoder; apply the edit to the model it "
            "was made for"
        )
    return changed


def mlp_width(arrays: Mapping[str, np.ndarray]) -> int:
    """Hidden units of the MLPs."""
    return next(len(array) for name, array in arrays.items() if name.endswith(".mlp.fc1.bias"))


def _loaded(file: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from error


def _replaced(
    original: bytes, arrays: Mapping[str, np.ndarray], edited: Mapping[str, np.ndarray]
) -> bytes:
    """The file of `arrays` with new values in the place of old ones; all other bytes stay.

    Where a tensor has grown, all of the file is written anew.
    """
    if any(edited[name].shape != array.shape for name, array in arrays.items()):
        return save({name: edited[name] for name in arrays}, metadata={"format": "pt"})
    content = bytearray(original)
    start = 8 + int.from_bytes(original[:8], "little")
    entries = json.loads(original[8:start])
    for name, array in arrays.items():
        if edited[name] is not array:
            first, last = entries[name]["data_offsets"]
            content[start + first : start + last] = edited[name].tobytes()
    return bytes(content)
