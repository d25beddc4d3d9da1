# ruff: noqa: RUF009 (sections of settings are frozen)
"""Task `edit_file`: show an edit, apply it to a model folder, undo that, or export it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from emcid_jax.config import CountOrZero, ExportConfig, ModelConfig, renamed
from emcid_jax.editing.export import (
    edit_file,
    into_folder,
    into_single_file,
    lora,
    stored_weights,
    text_encoder,
)
from emcid_jax.editing.export.edit_file import Edits, StoredLayer
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.models.weights.safetensors_files import read_header
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.single_file import file_hash, read_refiner, source_hash
from emcid_jax.pipelines.sources import is_hub_id
from emcid_jax.reporting.pages import card
from emcid_jax.reporting.pages.card import CardData
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.terminal import show
from emcid_jax.storage import ownership
from emcid_jax.storage.files import sweep
from emcid_jax.workflow import hub
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.inputs import require_model

CLIP = {FIRST: "clip_l.safetensors", SECOND: "clip_g.safetensors"}
LORA, DIFF = "lora.safetensors", "diff.safetensors"
Operation = Literal["show", "apply", "undo", "folder", "clip", "lora", "diff", "checkpoint"]
_EXPORTS = ("folder", "clip", "lora", "diff", "checkpoint")
"""Operations that write in the workdir."""


@dataclasses.dataclass(frozen=True)
class EditFileConfig:
    """Settings of this task."""

    task: Literal["edit_file"] = "edit_file"
    """Which task of main runs."""
    operation: Operation = "show"
    """`show`, `apply` (to the model's folder), `undo`, `folder` (a whole edited model), `clip`
    (every edited text encoder as a file for ComfyUI and Forge), `lora` (kohya's names), `diff` (the
    same names, exact and larger) or `checkpoint` (the model's single file, edited)."""
    edit: str = ""
    """The edit file, e.g. `runs/mine/edit.safetensors`; `undo` needs none."""
    model: ModelConfig = ModelConfig()
    """`apply`, `undo`: its folder is changed. `clip`, `checkpoint`: the base model."""
    force: bool = False
    """Apply to another base model, or undo although the weights were changed since."""
    rank: CountOrZero = 64
    """`lora`: its rank; 0 cuts nothing."""
    export: ExportConfig = ExportConfig()
    """`folder`: what its model card says. All operations that write files in the workdir: where
    they are sent, and the card that goes with them."""

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if self.operation != "undo" and not self.edit:
            raise UserError(
                "config.edit is empty; give an edit file, e.g. runs/mine/edit.safetensors"
            )
        for field, value, usual, operations in (
            ("model.export_dtype", self.model.export_dtype, "source", ("clip", "lora", "diff")),
            ("rank", self.rank, EditFileConfig.rank, ("lora",)),
            ("force", self.force, False, ("apply", "undo", "folder", "clip", "checkpoint")),
            ("export.hub", self.export.hub, "", _EXPORTS),
        ):
            if value != usual and self.operation not in operations:
                raise UserError(
                    f"config.{field} is {value!r}, but operation {self.operation!r} does not read "
                    f"it; leave it at {usual!r}"
                )
        if self.export.hub:
            hub.require_name(self.export.hub)
        elif self.export.public:
            raise UserError(
                "config.export.public is True, but config.export.hub is empty; name a repository"
            )
        said = self.export.base_model or self.export.license
        if said and not self.export.hub and self.operation != "folder":
            raise UserError(
                f"config.export.base_model or license is {said!r}, but operation "
                f"{self.operation!r} writes no model card without config.export.hub; leave it out"
            )
        if self.export.base_model and not is_hub_id(self.export.base_model):
            raise UserError(
                f"config.export.base_model is {self.export.base_model!r}; give a Hub id such as "
                "owner/name"
            )
        if self.operation in ("lora", "diff") and self.model.export_dtype == "bfloat16":
            raise UserError(
                f"config.model.export_dtype is 'bfloat16'; operation {self.operation} writes "
                "float32 or float16"
            )
        if self.operation in ("apply", "undo") and not Path(self.model.path).is_dir():
            raise UserError(
                f"config.model.path is {self.model.path!r}, which is no folder of yours; give one, "
                "or use operation clip, lora, diff or checkpoint"
            )
        if self.operation == "checkpoint" and not Path(self.model.path).is_file():
            raise UserError(
                f"config.model.path is {self.model.path!r}, which is no file; give a single-file "
                "checkpoint, or use operation apply"
            )


Config = EditFileConfig
UNREAD = ("model.dtype", "model.unet_storage")
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("model", *CLIP.values(), LORA, DIFF, "*-edited.safetensors")
"""What the task writes in its workdir."""


def run(config: EditFileConfig, workdir: Path) -> None:
    """Does the operation; exports lie in `workdir`, and go to the Hub if the settings say so."""
    ownership.require_apart(workdir, folders.said(workdir))
    place = hub.look(config.export.hub, config.export.public)
    written = _OPERATIONS[config.operation](config, workdir)
    if place is not None:
        _push(place, written, config)


def _push(place: hub.Place, written: list[Path], config: EditFileConfig) -> None:
    """Sends what was written to the Hub: a folder with all that is in it, else files and a card."""
    files: dict[str, Path | bytes] = {path.name: path for path in written}
    if config.operation == "folder":
        inside = (path for path in written[0].rglob("*") if path.is_file())
        files = {path.relative_to(written[0]).as_posix(): path for path in inside}
    else:
        ledger = _read(config)[1]
        files[into_folder.CARD] = _card(config, ledger, [path.name for path in written], "")
    show(f"sent to {hub.push(place, files, 'An edit by emcid_jax')}")


def _card(
    config: EditFileConfig, ledger: Mapping[str, Any], files: list[str], license_: str
) -> bytes:
    """The model card; `license_` is the base model's where its folder says it."""
    path, said = config.model.path, config.export
    kind: Any = config.operation  # One of those that write something.
    return card.card(
        CardData(
            kind=kind,
            files=tuple(files),
            ledger=ledger,
            base_model=said.base_model or (path if is_hub_id(path) else ""),
            license=said.license or license_,
            place=said.hub or "model",
            metrics=card.metrics_of(Path(config.edit), ledger),
        )
    )


def _show(config: EditFileConfig, workdir: Path) -> list[Path]:
    path = Path(config.edit)
    for line in summary(*edit_file.read_ledger(path), path.stat().st_size):
        show(line)
    return []


def _read(config: EditFileConfig) -> tuple[Edits, dict[str, Any]]:
    """The edits of all text encoders of the model, and the ledger."""
    content, ledger = edit_file.read_edit(Path(config.edit))
    return edit_file.of_model(content, ledger), ledger


def _apply(config: EditFileConfig, workdir: Path) -> list[Path]:
    edits, ledger = _read(config)
    folder = require_model(config.model)
    left = into_folder.apply(folder, edits, ledger, config.force, config.model.variant)
    show(f"applied {len(ledger['requests'])} edits to {folder}; undo takes them out again")
    _say_unedited(left, "is not edited")
    return []


def _undo(config: EditFileConfig, workdir: Path) -> list[Path]:
    folder = require_model(config.model)
    into_folder.undo(folder, config.force, config.model.variant)
    show(f"{folder} has its original text encoder again")
    return []


def _folder(config: EditFileConfig, workdir: Path) -> list[Path]:
    path = workdir / "model"
    _require_free(path, config)
    edits, ledger = _read(config)
    folder, variant = require_model(config.model), config.model.variant
    page = _card(config, ledger, ["model"], card.base_license(folder))
    left = into_folder.write_copy(path, folder, edits, ledger, config.force, variant, page)
    show(f"wrote {path}")
    _say_unedited(left, "is left out, for it is not edited")
    return [path]


def _clip(config: EditFileConfig, workdir: Path) -> list[Path]:
    edits, ledger = _read(config)
    for part in edits:
        _require_free(workdir / CLIP[part], config)
    edit_file.require_own_width(edits, "ComfyUI and Forge read clip_l with a fixed width: it")
    folder, variant = require_model(config.model), config.model.variant
    base = {part: stored_weights.read_weights(folder, variant, part).arrays for part in edits}
    _require_base(base, ledger, config)
    for part, arrays in base.items():
        path = workdir / CLIP[part]
        edited = stored_weights.add_deltas(arrays, edits[part])
        text_encoder.write_clip(path, edited, config.model.export_dtype)
        show(f"wrote {path}")
    return [workdir / CLIP[part] for part in base]


def _require_base(
    arrays: Mapping[str, Mapping[str, Any]], ledger: Mapping[str, Any], config: EditFileConfig
) -> None:
    """UserError, unless forced, if the edit is of other text encoders than these, by part."""
    for part in arrays.keys() - ledger["base"].keys():
        raise UserError(
            f"{config.model.path}: has {part}, of which this edit says nothing; apply it to the "
            "model it was made for"
        )
    for part, own in arrays.items():
        stored_weights.require_base(own, ledger, config.model.path, config.force, part)


def _say_unedited(names: list[str], what: str) -> None:
    """What a tool may read that the edit is not in."""
    for name in names:
        show(f"{name} {what}")


def _lora(config: EditFileConfig, workdir: Path) -> list[Path]:
    path = workdir / LORA
    _require_free(path, config)
    edits, ledger = _read(config)
    for layer in lora.write_lora(path, edits, ledger, config.rank, _float(config)):
        part = "" if layer.part == FIRST else f"{layer.part} "
        show(f"{part}layer {layer.layer}: rank {layer.rank}, error {layer.error:.2g} of |dW|")
    show(f"wrote {path}")
    return [path]


def _diff(config: EditFileConfig, workdir: Path) -> list[Path]:
    path = workdir / DIFF
    _require_free(path, config)
    lora.write_diff(path, *_read(config), _float(config))
    show(f"wrote {path}")
    return [path]


def _float(config: EditFileConfig) -> str:
    return "float16" if config.model.export_dtype == "float16" else "float32"


def _checkpoint(config: EditFileConfig, workdir: Path) -> list[Path]:
    source = Path(config.model.path)
    path = workdir / f"{source.stem}-edited.safetensors"
    _require_free(path, config)
    edits, ledger = _read(config)
    if ldm_keys.version_of(read_header(source).shapes, source) == "refiner":
        sha256, base = file_hash(source), {SECOND: read_refiner(source)}
    else:
        folder = require_model(config.model)
        base = {part: stored_weights.read_weights(folder, "", part).arrays for part in edits}
        sha256 = source_hash(folder)
    _require_base(base, ledger, config)
    into_single_file.write_checkpoint(path, source, edits, sha256)
    show(f"wrote {path}")
    return [path]


def _require_free(path: Path, config: EditFileConfig) -> None:
    """UserError, before anything is read, if `path` must not be written or is somebody else's.

    What a killed process was writing beside it goes.
    """
    folders.require_writable(path.parent, (), config)
    sweep(path.parent)
    if path.name in (LORA, DIFF, *CLIP.values()):
        ownership.require_own_file(path)
    else:
        ownership.require_new(path)


def summary(
    layers: Mapping[str, tuple[StoredLayer, ...]], ledger: Mapping[str, Any], size: int
) -> list[str]:
    """What an edit file contains, a line each."""
    lines = [f"{len(ledger['requests'])} edits, {size / 2**20:.1f} MiB"]
    gates: dict[str, Any] = {}
    for encoder, stored in layers.items():
        about = edit_file.ledger_of(ledger, encoder)
        gates |= {gate["source"]: gate for gate in (about["report"].get("units") or _NONE)["gates"]}
        lines += _encoder_summary(encoder, stored, about, ledger["base"][encoder])
    requests = [
        f"{request['task']}: {request['source']} -> {' | '.join(request['dest'])} "
        f"(weight {request['weight']:g}, strength {request['strength']:g}, "
        f"memory {request['memory'][:12]}{_gate(gates.get(request['source']))})"
        for request in sorted(ledger["requests"], key=lambda request: request["source"])
    ]
    return lines + requests


_NONE: Mapping[str, Any] = {"gates": ()}


def _encoder_summary(
    encoder: str, layers: tuple[StoredLayer, ...], about: Mapping[str, Any], base: str
) -> list[str]:
    """What an edit does to one text encoder."""
    report = about["report"]
    units = report.get("units")
    if not layers and not units:
        return [f"{encoder} {base[:12]}: unchanged"]
    lines = [
        f"made for {encoder} {base[:12]}",
        f"distance to the targets {report['distance_before']:.4g} -> "
        f"{report['distance_after']:.4g}",
        f"stage_two {json.dumps(renamed.current(about['stage_two'], 'stage_two'))}",
    ]
    for stored, solved in zip(layers, report["layers"], strict=True):
        form = "dense" if stored.form == "dense" else f"factors of rank {stored.rank}"
        lines.append(
            f"layer {stored.layer}: {form}, stored to {stored.error:.1g} of |dW|; |dW| is "
            f"{solved['change']:.2g} of |W|, condition {solved['condition']:.2g}"
        )
    if units:
        lines.append(
            f"{len(units['gates'])} concept units; one answers wrongly at "
            f"{units['false_firing']:.2g} of {units['tokens']:,} tokens of captions"
        )
        if room := units.get("room"):
            lines.append(
                f"they replace {room['gone']:,} of {room['inner']:,} hidden units, which changes "
                f"what the MLP gives to captions by {room['lost']:.2g}"
            )
    return lines


def _gate(gate: Mapping[str, Any] | None) -> str:
    """What there is to say of a request's unit."""
    if gate is None:
        return ""
    if gate["shares"]:
        return f", shares the unit of {gate['shares']}"
    return f", threshold {gate['threshold']:.2f}, answers in {gate['recall']:.0%} of its contexts"


_OPERATIONS: dict[str, Callable[[EditFileConfig, Path], list[Path]]] = {
    "show": _show,
    "apply": _apply,
    "undo": _undo,
    "folder": _folder,
    "clip": _clip,
    "lora": _lora,
    "diff": _diff,
    "checkpoint": _checkpoint,
}
