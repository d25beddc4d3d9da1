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
from safetensors.numpy import load

from emcid_jax.editing.export.edit_file import WEIGHT, EditFile
from emcid_jax.models.text.clip import disk_name
from emcid_jax.models.weights.params import params_hash
from emcid_jax.models.weights.shards import head_file, weight_files
from emcid_jax.runtime.checkpoints import holds_weights
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.files import open_to_read


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


def read_weights(folder: Path, variant: str = "") -> StoredWeights:
    """The text encoder's weights of a model in diffusers' layout, by the rules of `weight_files`.

    UserError if there is no such variant, or if a file is damaged.
    """
    place = folder / "text_encoder"
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
    arrays: Mapping[str, np.ndarray], ledger: Mapping[str, Any], source: object, force: bool
) -> None:
    """UserError, unless `force`, if the edit was made for other weights than those of `source`."""
    found, base = weights_hash(arrays), ledger["base"]["text_encoder"]
    if found != base and not force:
        already = " (it has this edit already)" if found == ledger["edited"] else ""
        raise UserError(
            f"{source}: text encoder {found[:12]} is not the one that the edit was made for, "
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
    for layer, delta in content.deltas().items():
        name = stored.get(WEIGHT.format(layer))
        if name is None or arrays[name].shape != delta.shape:
            raise UserError(
                f"weight edit: {WEIGHT.format(layer)} of shape {delta.shape} is not in this text "
                "encoder; apply the edit to the model it was made for"
            )
        with np.errstate(over="ignore"):  # Said below.
            edited[name] = (arrays[name].astype(np.float64) + delta).astype(arrays[name].dtype)
        if not np.isfinite(edited[name].astype(np.float32)).all():
            raise UserError(f"weight edit: {name} does not fit {arrays[name].dtype}; use float32")
    return edited


def _loaded(file: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from error


def _replaced(
    original: bytes, arrays: Mapping[str, np.ndarray], edited: Mapping[str, np.ndarray]
) -> bytes:
    """The file of `arrays` with new values in the place of old ones; all other bytes stay."""
    content = bytearray(original)
    start = 8 + int.from_bytes(original[:8], "little")
    entries = json.loads(original[8:start])
    for name, array in arrays.items():
        if edited[name] is not array:
            first, last = entries[name]["data_offsets"]
            content[start + first : start + last] = edited[name].tobytes()
    return bytes(content)
