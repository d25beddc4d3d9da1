"""An edit file applied to the text encoders of a diffusers folder, and undone.

What tools look for is replaced in one step: the weight file, or of a sharded set its index, which
then names edited copies of the shards that change. An edit with concept units also changes the
width in `config.json`: there the whole `text_encoder` folder is replaced in one step. The original
stays beside the edit until `undo` puts it back, bit by bit. Whenever the process dies every text
encoder is whole, edited or not, and the same call completes the work. Of several calls on one
folder each waits for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.editing.export.edit_file import EditFile, Edits, by_part
from emcid_jax.editing.export.stored_weights import (
    StoredWeights,
    mlp_width,
    read_weights,
    require_base,
)
from emcid_jax.editing.export.text_encoder import with_width
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.models.weights.shards import SHARD, head_file, variant_of
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.storage.files import (
    changing_folder,
    link_or_copy,
    replacing_folder,
    require_plain,
    sweep,
    write_atomically,
)
from emcid_jax.storage.locks import held_folder
from emcid_jax.storage.ownership import require_new
from emcid_jax.storage.text_files import read_json_object

RECORD = "edit.json"
"""What was applied, beside the weights: hashes of all files and the edit's ledger. Variants have
their own, e.g. `edit.fp16.json`."""
CONFIG = "config.json"
CARD, BASE_CARD = "README.md", "README-base.md"
KEPT = ".unedited"
"""Appended to the name of the original file: no tool takes it for weights."""
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
"""Endings of files in which tools look for weights."""


class _Files(NamedTuple):
    """Where an edit of one variant leaves what."""

    head: Path
    kept: Path
    record: Path


class _Change(NamedTuple):
    """What is written to edit one text encoder."""

    record: Path
    about: Mapping[str, Any]
    """The content of the record, which is written first."""
    written: Mapping[Path, bytes]
    """The other files, in this order."""
    wider: bool
    """Whether the folder is replaced as one: weights and config.json change."""
    left: list[str]
    """Weight files that are not edited."""


def apply(
    folder: Path,
    content: EditFile | Edits,
    ledger: Mapping[str, Any],
    force: bool = False,
    variant: str = "",
) -> list[str]:
    """Adds an edit to the weights of a model's text encoders, in their stored types.

    Args:
        folder: a model in diffusers' layout. SDXL's refiner has the second encoder only, so only
            its edit is added.
        content: the edit, or those of both text encoders.
        ledger: its ledger.
        force: add it to another base model than it was made for, too.
        variant: which weight files, see `weight_files`.

    Returns:
        The edited text encoders' other weight files, which are not edited: variants and other
        formats, as `text_encoder/NAME`.

    Raises:
        UserError: another base, an edit already there, weights that the edit does not fit, or
            somebody else's file in a place that is needed. Nothing is changed then.
    """
    with held_folder(folder):
        edits = _of_folder(folder, content)
        found = {part: read_weights(folder, variant, part) for part in edits}
        for part in edits:
            sweep(folder / part)
        # Of two encoders a killed call may have finished one.
        left = [part for part, weights in found.items() if not _is_done(weights, ledger)]
        changes = {
            part: _change(found[part], part, edits[part], ledger, force) for part in left or edits
        }
        for part, change in changes.items():
            if not change.wider:
                _write(change, folder / part)
                continue
            with changing_folder(folder / part) as new:
                _write(change, new)
    return [f"{part}/{name}" for part, change in changes.items() for name in change.left]


def _change(
    weights: StoredWeights, part: str, content: EditFile, ledger: Mapping[str, Any], force: bool
) -> _Change:
    """All that `apply` writes in a text encoder's folder; UserError if it must not."""
    head, folder = weights.head, weights.head.parent.parent
    files = _files(head)
    original = head.read_bytes()
    record = _read(files.record)
    if record and _sha(original) != record["original"]:
        raise UserError(f"{folder}: is edited already; undo that first, or merge the two banks")
    require_base(weights.arrays, ledger, folder, force, part)
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
    units = content.units()
    width = units.width if units else 0
    if width:
        config = head.with_name(CONFIG)
        read_json_object(config, "config.model.path")
        narrow = record["config"].encode() if record else b""
        narrow = narrow or config.read_bytes()
        about["config"] = narrow.decode()
        written[config] = _wider_config(narrow, weights, width)
    left = _unedited(head, {*weights.files, *added})
    return _Change(files.record, about, written, width > 0, left)


def _write(change: _Change, place: Path) -> None:
    """Writes all of it in `place`: the text encoder's own folder, or its copy."""
    checksums.write_json(place / change.record.name, change.about)
    for path, data in change.written.items():
        write_atomically(place / path.name, data)


def _of_folder(folder: Path, content: EditFile | Edits) -> dict[str, EditFile]:
    """The edits that change something in a model's folder."""
    edits = by_part(content)
    if len(edits) == 1:
        return dict(edits)
    refiner = not (folder / FIRST).is_dir() and (folder / SECOND).is_dir()
    kept = {
        part: edit
        for part, edit in edits.items()
        if edit.arrays and not (refiner and part == FIRST)
    }
    if not kept:
        raise UserError(f"{folder}: has none of the text encoders that the edit changes")
    return kept


def _is_done(weights: StoredWeights, ledger: Mapping[str, Any]) -> bool:
    """Whether just this edit is in a text encoder already."""
    record = _read(_files(weights.head).record)
    if record is None or record["ledger"] != json.loads(json.dumps(dict(ledger))):
        return False
    return _file(weights.head) == record["edited"] != record["original"]


def undo(folder: Path, force: bool = False, variant: str = "") -> None:
    """Puts the original weights of all text encoders back, checked by their hash.

    UserError if no edit was applied, an original is lost or damaged, or, unless `force`, the
    weights were changed since; nothing is changed then.
    """
    places = [folder / part for part in (FIRST, SECOND) if (folder / part).is_dir()]
    if not places:
        raise UserError(
            f"{folder / FIRST}: no such folder; give a model folder in diffusers' layout"
        )
    with held_folder(folder):
        found = []
        for place in places:
            sweep(place)
            files = _files(head_file(place, variant))
            if (record := _read(files.record)) is not None:
                _require_undoable(files, record, force)
                found.append((place, files, record))
        if not found:
            others = [path for place in places for path in place.glob("edit.*.json")]
            others = [path for path in others if path.name != _record(variant)]
            hint = f" ({others[0].name} is of another config.model.variant)" if others else ""
            raise UserError(f"{folder}: no edit was applied here; there is nothing to undo{hint}")
        for place, files, record in found:
            if not record["config"]:
                _undo(files, record, place)
                continue
            with changing_folder(place) as new:
                _undo(files, record, new)


def _require_undoable(files: _Files, record: Mapping[str, Any], force: bool) -> None:
    """UserError if `undo` must not touch a text encoder, or cannot restore it."""
    added = {files.head.with_name(name): digest for name, digest in record["added"].items()}
    now = _file(files.head)
    changed = [path for path, digest in added.items() if path.exists() and _file(path) != digest]
    changed += [files.head] if now not in (record["original"], record["edited"]) else []
    if changed and not force:
        raise UserError(
            f"{changed[0]}: was changed after the edit; --config.force=True restores the original "
            "all the same"
        )
    lost = not files.kept.exists() or _file(files.kept) != record["original"]
    if now != record["original"] and lost:
        raise UserError(f"{files.kept}: the original is lost or damaged; fetch the model again")


def _undo(files: _Files, record: Mapping[str, Any], place: Path) -> None:
    """Puts a text encoder back in `place`: the files' own folder, or its copy."""
    if _file(files.head) != record["original"]:
        (place / files.kept.name).replace(place / files.head.name)
    if record["config"]:
        write_atomically(place / CONFIG, record["config"].encode())
    for name in (files.kept.name, *record["added"]):
        (place / name).unlink(missing_ok=True)
    (place / files.record.name).unlink()


def write_copy(
    target: Path,
    folder: Path,
    content: EditFile | Edits,
    ledger: Mapping[str, Any],
    force: bool = False,
    variant: str = "",
    card: bytes = b"",
) -> list[str]:
    """Writes a whole model folder with the edit in it; `folder` stays as it is.

    Unedited parts are hard links where the disk allows it, else copies. Other weight files of an
    edited text encoder (variants, pickles) are left out, and their names returned: they are not
    edited.
    `card` becomes its README.md; the one in `folder` is README-base.md there.
    The folder appears by one rename. UserError as in `apply`, and if `target` is there already.
    """
    sweep(target.parent)
    require_new(target)
    edited: dict[Path, bytes] = {}
    heads, left = [], []
    for part, edit in _of_folder(folder, content).items():
        weights = read_weights(folder, variant, part)
        require_base(weights.arrays, ledger, folder, force, part)
        edited |= weights.edited(edit)
        if (units := edit.units()) and units.width:
            config = weights.head.with_name(CONFIG)
            edited[config] = _wider_config(config.read_bytes(), weights, units.width)
        heads.append(weights.head)
        left += [f"{part}/{name}" for name in _unedited(weights.head, weights.files)]
    with replacing_folder(target) as staging:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = file.relative_to(folder)
            beside = file not in heads and any(file.parent == head.parent for head in heads)
            if place.parts[0].startswith(".") or (beside and _is_left_out(place, left)):
                continue
            (staging / place).parent.mkdir(parents=True, exist_ok=True)
            if card and file == folder / CARD:
                place = Path(BASE_CARD)
                if (folder / place).exists():  # The model is an export: its base's card stays.
                    continue
            if file in edited:
                (staging / place).write_bytes(edited[file])
            else:
                link_or_copy(file.resolve(), staging / place)
        if card:
            (staging / CARD).write_bytes(card)
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


def _wider_config(config: bytes, weights: StoredWeights, width: int) -> bytes:
    """config.json of the text encoder with so many more hidden units."""
    return with_width(config, mlp_width(weights.arrays) + width)


def _files(head: Path) -> _Files:
    record = head.with_name(_record(variant_of(head.name)))
    return _Files(head, head.with_name(head.name + KEPT), record)


def _record(variant: str) -> str:
    return f"edit.{variant}.json" if variant else RECORD


def _unedited(head: Path, edited: Collection[Path]) -> list[str]:
    """Names of the text encoder's weight files that are not `edited`, whatever reads them."""
    every = sorted(head.parent.iterdir())
    return [path.name for path in every if path.suffix in WEIGHTS and path not in edited]


def _is_left_out(place: Path, unedited: Collection[str]) -> bool:
    """Whether a copy does without this file: other weights, their index, or what `apply` left."""
    ours = place.name.endswith(KEPT) or re.fullmatch(r"edit(\..+)?\.json", place.name)
    return place.as_posix() in unedited or ".index." in place.name or bool(ours)


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
