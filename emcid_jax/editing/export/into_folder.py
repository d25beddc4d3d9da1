"""An edit file applied to the text encoder of a diffusers folder, and undone.

The original weight file stays beside the edited one until `undo` puts it back, bit by bit.
Whenever the process dies the folder holds a whole model, and the same call completes the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.files import write_atomically

RECORD = "edit.json"
"""What was applied, beside the weights: hashes of both files and the edit's ledger."""
KEPT = ".unedited"
"""Appended to the name of the original file: no tool takes it for weights."""


def apply(folder: Path, content: EditFile, ledger: Mapping[str, Any], force: bool = False) -> None:
    """Adds an edit to the weights in `folder/text_encoder`, in their stored type.

    Args:
        folder: a model in diffusers' layout.
        content: the edit.
        ledger: its ledger.
        force: add it to another base model than it was made for, too.

    Raises:
        UserError: another base, an edit already there, weights that the edit does not fit.
    """
    file = weight_file(folder)
    record, kept = file.with_name(RECORD), file.with_name(file.name + KEPT)
    original = file.read_bytes()
    if record.exists() and _sha(original) != _read(record)["original"]:
        raise UserError(f"{folder}: is edited already; undo that first, or merge the two banks")
    arrays = read_weights(file)
    require_base(arrays, ledger, folder, force)
    edited = _replaced(original, arrays, add_deltas(arrays, content))
    write_atomically(kept, original)
    about = {"original": _sha(original), "edited": _sha(edited), "ledger": dict(ledger)}
    write_atomically(record, json.dumps(about, indent=2, ensure_ascii=False).encode())
    write_atomically(file, edited)


def undo(folder: Path, force: bool = False) -> None:
    """Puts the original weights of `folder/text_encoder` back, checked by their hash.

    UserError if no edit was applied, the original is lost or damaged, or, unless `force`, the
    weights were changed since.
    """
    file = weight_file(folder)
    record, kept = file.with_name(RECORD), file.with_name(file.name + KEPT)
    if not record.exists():
        raise UserError(f"{folder}: no edit was applied here; there is nothing to undo")
    about = _read(record)
    now = _sha(file.read_bytes())
    if now not in (about["original"], about["edited"]) and not force:
        raise UserError(
            f"{file}: was changed after the edit; --config.force=True restores the original all "
            "the same"
        )
    if now != about["original"]:
        if not kept.exists() or _sha(kept.read_bytes()) != about["original"]:
            raise UserError(f"{kept}: the original is lost or damaged; fetch the model again")
        kept.replace(file)
    kept.unlink(missing_ok=True)
    record.unlink()


def write_copy(
    target: Path, folder: Path, content: EditFile, ledger: Mapping[str, Any], force: bool = False
) -> None:
    """Writes a whole model folder with the edit in it; `folder` stays as it is.

    Unedited parts are hard links where the disk allows it, else copies. Other weight files of the
    text encoder (variants, pickles) are left out: they are not edited. The folder appears by one
    rename. UserError as in `apply`, and if `target` is there already.
    """
    if target.exists():
        raise UserError(f"{target}: is there already; give another --workdir")
    weights = weight_file(folder)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = file.relative_to(folder)
            edited = place.parts[0] == weights.parent.name
            if place.parts[0].startswith(".") or (
                edited and file != weights and file.suffix != ".json"
            ):
                continue
            (staging / place).parent.mkdir(parents=True, exist_ok=True)
            _link(file.resolve(), staging / place)
        apply(staging, content, ledger, force)
        copied = weight_file(staging)
        copied.with_name(RECORD).unlink()
        copied.with_name(copied.name + KEPT).unlink()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another disk, or one without links.
        shutil.copyfile(source, target)


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


def weight_file(folder: Path) -> Path:
    """The weights of a model's text encoder. UserError if there is no such file."""
    file = folder / "text_encoder" / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a model folder in diffusers' layout")
    return file


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """The file's tensors under its own names. UserError if it is damaged."""
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from error


def weights_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """`params_hash` of a text encoder's float32 parameters, from what its file holds."""
    named = {
        tuple(disk_name(name).split(".")): array.astype(np.float32)
        for name, array in arrays.items()
        if not name.endswith(".position_ids")
    }
    return params_hash(unflatten_dict(named))


def add_deltas(arrays: Mapping[str, np.ndarray], content: EditFile) -> dict[str, np.ndarray]:
    """The tensors with every dW added, in their own types; all else is shared.

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


def _replaced(
    original: bytes, arrays: Mapping[str, np.ndarray], edited: Mapping[str, np.ndarray]
) -> bytes:
    """The file with new values in the place of old ones; all other bytes stay."""
    content = bytearray(original)
    start = 8 + int.from_bytes(original[:8], "little")
    entries = json.loads(original[8:start])
    for name, array in edited.items():
        if array is not arrays[name]:
            first, last = entries[name]["data_offsets"]
            content[start + first : start + last] = array.tobytes()
    return bytes(content)


def _read(record: Path) -> dict[str, Any]:
    try:
        return json.loads(record.read_bytes())
    except ValueError as error:
        raise UserError(f"{record}: not readable ({error}); fetch the model again") from error


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
