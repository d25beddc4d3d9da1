"""An edit file applied to the text encoder of a diffusers folder, and undone.

What tools look for is replaced in one step: the weight file, or of a sharded set its index, which
then names edited copies of the shards that change. An edit with concept units also changes the
width in `config.json`: there the whole `text_encoder` folder is replaced in one step. The original
stays beside the edit until `undo` puts it back, bit by bit. Whenever the process dies the folder
holds a whole model, edited or not, and the same call completes the work. Of several calls on one
folder each waits for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.editing.encoder.hidden_units import Units
from emcid_jax.editing.export.edit_file import EditFile
from emcid_jax.editing.export.stored_weights import (
    StoredWeights,
    mlp_width,
    read_weights,
    require_base,
)
from emcid_jax.editing.export.text_encoder import with_width
from emcid_jax.models.weights.shards import SHARD, head_file, variant_of
from emcid_jax.runtime import checksums
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.files import (
    changing_folder,
    link_or_copy,
    replacing_folder,
    require_plain,
    sweep,
    write_atomically,
)
from emcid_jax.runtime.locks import held_folder
from emcid_jax.runtime.ownership import require_new
from emcid_jax.runtime.text_files import read_json_object

RECORD = "edit.json"
"""What was applied, beside the weights: hashes of all files and the edit's ledger. Variants have
their own, e.g. `edit.fp16.json`."""
CONFIG = "config.json"
KEPT = ".unedited"
"""Appended to the name of the original file: no tool takes it for weights."""
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
"""Endings of files in which tools look for weights."""


class _Files(NamedTuple):
    """Where an edit of one variant leaves what."""

    head: Path
    kept: Path
    record: Path


def apply(
    folder: Path,
    content: EditFile,
    ledger: Mapping[str, Any],
    force: bool = False,
    variant: str = "",
) -> list[str]:
    """Adds an edit to the weights in `folder/text_encoder`, in their stored types.

    Args:
        folder: a model in diffusers' layout.
        content: the edit.
        ledger: its ledger.
        force: add it to another base model than it was made for, too.
        variant: which weight files, see `weight_files`.

    Returns:
        The text encoder's other weight files, which are not edited: variants and other formats.

    Raises:
        UserError: another base, an edit already there, weights that the edit does not fit, or
            somebody else's file in a place that is needed.
    """
    with held_folder(folder):
        weights = read_weights(folder, variant)
        place = weights.head.parent
        sweep(place)
        if not content.units():
            return _apply(weights, place, content, ledger, force)
        with changing_folder(place) as new:
            return _apply(weights, new, content, ledger, force)


def _apply(
    weights: StoredWeights,
    place: Path,
    content: EditFile,
    ledger: Mapping[str, Any],
    force: bool,
) -> list[str]:
    """As `apply`, with all that is written in `place`: the weights' own folder, or its copy."""
    head, folder = weights.head, weights.head.parent.parent
    files = _files(head)
    original = head.read_bytes()
    record = _read(files.record)
    if record and _sha(original) != record["original"]:
        raise UserError(f"{folder}: is edited already; undo that first, or merge the two banks")
    require_base(weights.arrays, ledger, folder, force)
    edited, added = _edited(weights, original, content)
    # What a killed call left has a record, or is what this one would write.
    known = {files.kept.name, *record["added"]} if record else set()
    for path, data in {files.kept: original, **added}.items():
        require_plain(path)
        if path.exists() and path.name not in known and path.read_bytes() != data:
            raise UserError(f"{path}: is not of this program, and in the way; move it away")
    require_plain(head)
    about = {
        "original": _sha(original),
        "edited": _sha(edited),
        "added": {path.name: _sha(data) for path, data in added.items()},
        "ledger": dict(ledger),
    }
    written = {files.kept: original, **added, head: edited}
    if units := content.units():
        config = head.with_name(CONFIG)
        read_json_object(config, "config.model.path")
        narrow = record["config"].encode() if record else b""
        narrow = narrow or config.read_bytes()
        about["config"] = narrow.decode()
        written[config] = _wider_config(narrow, weights, units)
    checksums.write_json(place / files.record.name, about)
    for path, data in written.items():
        write_atomically(place / path.name, data)
    return _unedited(head, {*weights.files, *added})


def undo(folder: Path, force: bool = False, variant: str = "") -> None:
    """Puts the original weights of `folder/text_encoder` back, checked by their hash.

    UserError if no edit was applied, the original is lost or damaged, or, unless `force`, the
    weights were changed since.
    """
    place = folder / "text_encoder"
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give a model folder in diffusers' layout")
    with held_folder(folder):
        sweep(place)
        files = _files(head_file(place, variant))
        record = _read(files.record)
        if record is None:
            others = [path for path in place.glob("edit.*.json") if path != files.record]
            hint = f" ({others[0].name} is of another config.model.variant)" if others else ""
            raise UserError(f"{folder}: no edit was applied here; there is nothing to undo{hint}")
        if not record["config"]:
            _undo(files, record, place, force)
            return
        with changing_folder(place) as new:
            _undo(files, record, new, force)


def _undo(files: _Files, record: Mapping[str, Any], place: Path, force: bool) -> None:
    """As `undo`, with all that changes in `place`: the files' own folder, or its copy."""
    added = {files.head.with_name(name): digest for name, digest in record["added"].items()}
    now = _file(files.head)
    changed = [path for path, digest in added.items() if path.exists() and _file(path) != digest]
    changed += [files.head] if now not in (record["original"], record["edited"]) else []
    if changed and not force:
        raise UserError(
            f"{changed[0]}: was changed after the edit; --config.force=True restores the original "
            "all the same"
        )
    if now != record["original"]:
        if not files.kept.exists() or _file(files.kept) != record["original"]:
            raise UserError(f"{files.kept}: the original is lost or damaged; fetch the model again")
        (place / files.kept.name).replace(place / files.head.name)
    if record["config"]:
        write_atomically(place / CONFIG, record["config"].encode())
    for path in (files.kept, *added):
        (place / path.name).unlink(missing_ok=True)
    (place / files.record.name).unlink()


def write_copy(
    target: Path,
    folder: Path,
    content: EditFile,
    ledger: Mapping[str, Any],
    force: bool = False,
    variant: str = "",
) -> list[str]:
    """Writes a whole model folder with the edit in it; `folder` stays as it is.

    Unedited parts are hard links where the disk allows it, else copies. Other weight files of the
    text encoder (variants, pickles) are left out, and their names returned: they are not edited.
    The folder appears by one rename. UserError as in `apply`, and if `target` is there already.
    """
    sweep(target.parent)
    require_new(target)
    weights = read_weights(folder, variant)
    require_base(weights.arrays, ledger, folder, force)
    edited = weights.edited(content)
    if units := content.units():
        config = weights.head.with_name(CONFIG)
        edited[config] = _wider_config(config.read_bytes(), weights, units)
    left = _unedited(weights.head, weights.files)
    with replacing_folder(target) as staging:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = file.relative_to(folder)
            beside = file.parent == weights.head.parent and file != weights.head
            if place.parts[0].startswith(".") or (beside and _is_left_out(file.name, left)):
                continue
            (staging / place).parent.mkdir(parents=True, exist_ok=True)
            if file in edited:
                (staging / place).write_bytes(edited[file])
            else:
                link_or_copy(file.resolve(), staging / place)
        require_new(target)
    return left


def _edited(
    weights: StoredWeights, original: bytes, content: EditFile
) -> tuple[bytes, dict[Path, bytes]]:
    """The new content of the file that tools look for, and the new files that it names."""
    edited = weights.edited(content)
    if weights.head in weights.files:
        return edited.get(weights.head, original), {}
    names = {file.name: SHARD.sub(r".edited\g<0>", file.name, count=1) for file in edited}
    index = json.loads(original)
    places = index["weight_map"]
    index["weight_map"] = {tensor: names.get(file, file) for tensor, file in places.items()}
    added = {file.with_name(names[file.name]): data for file, data in edited.items()}
    return json.dumps(index, indent=2).encode(), added


def _wider_config(config: bytes, weights: StoredWeights, units: Units) -> bytes:
    """config.json of the text encoder with the units in it."""
    return with_width(config, mlp_width(weights.arrays) + units.width)


def _files(head: Path) -> _Files:
    variant = variant_of(head.name)
    record = f"edit.{variant}.json" if variant else RECORD
    return _Files(head, head.with_name(head.name + KEPT), head.with_name(record))


def _unedited(head: Path, edited: Collection[Path]) -> list[str]:
    """Names of the text encoder's weight files that are not `edited`, whatever reads them."""
    every = sorted(head.parent.iterdir())
    return [path.name for path in every if path.suffix in WEIGHTS and path not in edited]


def _is_left_out(name: str, unedited: Collection[str]) -> bool:
    """Whether a copy does without this file: other weights, their index, or what `apply` left."""
    ours = name.endswith(KEPT) or re.fullmatch(r"edit(\..+)?\.json", name)
    return name in unedited or ".index." in name or bool(ours)


def _read(record: Path) -> dict[str, Any] | None:
    """The record of an edit; None if there is none. UserError for somebody else's file."""
    if not record.exists():
        return None
    remedy = "move it away, or fetch the model again"
    about = checksums.read_json(record, remedy, older=True)
    # Version 0.1 knew neither shards nor units.
    found = {"added": {}, "config": "", **about}
    kinds = {"original": str, "edited": str, "ledger": dict, "added": dict, "config": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise UserError(f"{record}: is no record of an edit ({wrong[0]} is missing); {remedy}")
    return found


def _file(path: Path) -> str:
    return _sha(path.read_bytes())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
