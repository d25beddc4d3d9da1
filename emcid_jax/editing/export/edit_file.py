"""The weight edit as a file: the change of every layer, and the ledger of what is in it.

A layer's change dW is stored in float32 under the name of the weight that it changes, or, where
that is smaller and as accurate, as two factors `.up` and `.down` with dW = up @ down: an edit of
few requests has low rank. What is stored is the edit: exports add what the file holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.concepts.requests import Task
from emcid_jax.config import Count, CountOrZero, Positive, StageTwoConfig
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.encoder import hidden_units
from emcid_jax.editing.encoder.hidden_units import Units
from emcid_jax.editing.export import factors, stored_units
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two.solve import ModelEdit, StageTwoReport
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.clip import MLP
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.runtime import typed_values
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.storage import checksums
from emcid_jax.storage.json_text import loads

WEIGHT = MLP.format("{}", "fc2.weight")
"""Name on disk of the weight that a linear edit changes."""

FORMAT = 2

_KIND = "weight edit"
_REMEDY = "make it again"


@dataclasses.dataclass(frozen=True)
class StoredLayer:
    """How one layer is stored."""

    layer: CountOrZero
    form: Literal["dense", "factors"]
    rank: Count
    """Columns of `up`; for `dense` the largest rank that such a matrix can have."""
    error: float
    """|stored - dW| / |dW| (Frobenius)."""
    norm: float
    """|dW| (Frobenius)."""


@dataclasses.dataclass(frozen=True)
class _Request:
    """A request in the ledger."""

    source: str
    dest: tuple[str, ...]
    task: Task
    weight: Positive
    strength: Positive
    memory: str


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """What the ledger says of a further text encoder."""

    edited: str
    moments: Mapping[str, Any]
    stage_two: Mapping[str, Any]
    report: StageTwoReport


@dataclasses.dataclass(frozen=True)
class _Ledger:
    """The fields of a ledger, for checking; see `make_ledger`."""

    format: int
    base: Mapping[str, str]
    edited: str
    stage_one: tuple[Mapping[str, Any], ...]
    moments: Mapping[str, Any]
    stage_two: Mapping[str, Any]
    report: StageTwoReport
    requests: tuple[_Request, ...]
    encoders: Mapping[str, _Encoder] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class EditFile:
    """The content of an edit file."""

    arrays: dict[str, np.ndarray]
    """float32, by name: those of the first text encoder. `places` are int32."""
    layers: tuple[StoredLayer, ...]
    """Ascending."""
    others: Mapping[str, EditFile] = dataclasses.field(default_factory=dict)
    """What is edited in further text encoders, by part."""

    def of(self, encoder: str) -> EditFile:
        """What is edited in one text encoder: of none of its layers, if nothing is."""
        none = EditFile({}, ())
        if encoder == FIRST:
            return dataclasses.replace(self, others={})
        return self.others.get(encoder, none)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders that are changed."""
        first = (FIRST,) if self.arrays else ()
        return (*first, *self.others)

    def units(self) -> Units | None:
        """Hidden units that the edit adds, if any."""
        return stored_units.unpacked(self.arrays)

    def deltas(self) -> dict[int, Float64[np.ndarray, "out inner"]]:
        """Layer -> dW, to be added to the base model's weights."""
        return {
            stored.layer: factors.restored(self.arrays, WEIGHT.format(stored.layer))
            for stored in self.layers
        }

    def changes(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Name on disk -> what is added to the base model's weight: all of an edit but units that
        make the encoder wider."""
        found: dict[str, np.ndarray] = {
            WEIGHT.format(layer): delta for layer, delta in self.deltas().items()
        }
        if (units := self.units()) is not None:
            added = hidden_units.changes(units)
            found |= {MLP.format(units.block, part): change for part, change in added.items()}
        return found

    @property
    def dim(self) -> int | None:
        """Width of the text encoder's states; None if nothing is edited."""
        if (units := self.units()) is not None:
            return units.rows.shape[1]
        names = [WEIGHT.format(stored.layer) for stored in self.layers]
        whole = (self.arrays.get(name, self.arrays.get(f"{name}.up")) for name in names)
        return next((len(array) for array in whole if array is not None), None)


Edits = Mapping[str, EditFile]
"""By part: of every text encoder that a model has. One that is not edited has no layers."""


def of_model(content: EditFile, ledger: Mapping[str, Any]) -> Edits:
    """The edits of all text encoders of the model that an edit was made for."""
    return {part: content.of(part) for part in (FIRST, SECOND) if part in ledger["base"]}


def by_part(content: EditFile | Edits) -> Edits:
    """The edits by text encoder; a bare one is that of all encoders that there are."""
    if not isinstance(content, EditFile):
        return content
    return {FIRST: content.of(FIRST), **content.others}


def pack_model(edit: ModelEdit) -> EditFile:
    """The edits of all text encoders."""
    packed = {name: pack(one.deltas, one.units) for name, one in edit.items()}
    first = packed.pop(FIRST, EditFile({}, ()))
    return dataclasses.replace(first, others=packed)


def pack(
    deltas: Mapping[int, Float[np.ndarray, "out inner"]], units: Units | None = None
) -> EditFile:
    """Every layer in its smaller form, and units as they are."""
    arrays = {} if units is None else stored_units.packed(units)
    layers = []
    for layer, delta in sorted(deltas.items()):
        exact = np.asarray(delta, np.float64)
        norm = float(np.linalg.norm(exact))
        name = WEIGHT.format(layer)
        kept = {name: np.ascontiguousarray(exact, np.float32)}
        stored = StoredLayer(layer, "dense", min(exact.shape), 0.0, norm)
        pair = factors.split(exact, name)
        if pair is not None and factors.error(pair, name, exact) <= factors.ACCURACY:
            kept = pair
            stored = StoredLayer(layer, "factors", pair[f"{name}.up"].shape[1], 0.0, norm)
        layers.append(dataclasses.replace(stored, error=factors.error(kept, name, exact)))
        arrays |= kept
    return EditFile(arrays, tuple(layers))


def require_own_width(content: EditFile | Edits, place: str) -> None:
    """UserError if the edit makes an encoder wider, which `place` has no room for."""
    for edit in by_part(content).values():
        if (units := edit.units()) is not None and units.width:
            raise UserError(
                f"config.edit: this edit adds {units.width} hidden units to the text encoder, and "
                f"{place} keeps the base model's width; use operation folder or apply, which "
                "transformers and diffusers load, or solve with "
                "config.stage_two.units_in_place=True"
            )


def write_edit(path: Path, content: EditFile, ledger: Mapping[str, Any]) -> None:
    """Writes an edit as one safetensors file, by one rename; a checksum covers all its bytes."""
    about = {
        "format": "pt",
        "layers": json.dumps([dataclasses.asdict(stored) for stored in content.layers]),
        "ledger": json.dumps(dict(ledger), ensure_ascii=False),
    }
    arrays = dict(content.arrays)
    for name, other in content.others.items():
        arrays |= {f"{name}.{tensor}": array for tensor, array in other.arrays.items()}
        layers = [dataclasses.asdict(stored) for stored in other.layers]
        about[f"layers.{name}"] = json.dumps(layers)
    checksums.write_tensors(path, arrays, about)


def read_edit(path: Path) -> tuple[EditFile, dict[str, Any]]:
    """Content and ledger. UserError if `path` is no edit file or damaged."""
    found = checksums.read_tensors(path, _KIND, _REMEDY)
    layers, ledger = _parsed(path, found)
    arrays = {name: _arrays_of(name, found.arrays) for name in layers}
    try:
        if sum(map(len, arrays.values())) != len(found.arrays):
            raise ValueError("it has tensors of a text encoder that its ledger does not name")
        for name, own in layers.items():
            _require_fitting(arrays[name], own)
    except ValueError as error:
        raise UserError(f"{path}: no {_KIND} ({error}); {_REMEDY}") from error
    parts = {name: EditFile(arrays[name], own) for name, own in layers.items()}
    first = parts.pop(FIRST)
    return dataclasses.replace(first, others=parts), ledger


def read_ledger(path: Path) -> tuple[dict[str, tuple[StoredLayer, ...]], dict[str, Any]]:
    """How layers are stored, by text encoder, and the ledger; every byte of the file is checked."""
    return _parsed(path, checksums.read_about(path, _KIND, _REMEDY))


def ledger_of(ledger: Mapping[str, Any], encoder: str) -> Mapping[str, Any]:
    """A ledger's entries about one text encoder: `edited`, `moments`, `stage_two`, `report`."""
    return ledger if encoder == FIRST else ledger["encoders"][encoder]


def _arrays_of(encoder: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one text encoder, under the names that they have in it."""
    if encoder == FIRST:
        return {name: array for name, array in arrays.items() if not name.startswith(f"{SECOND}.")}
    start = f"{encoder}."
    return {
        name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)
    }


def _parsed(
    path: Path, found: checksums.Tensors
) -> tuple[dict[str, tuple[StoredLayer, ...]], dict[str, Any]]:
    """What the file says of its tensors, every field checked."""
    try:
        if not found.sealed:
            raise ValueError("it has no checksum")
        ledger = loads(found.about["ledger"])
        about = typed_values.section(ledger, _Ledger, "ledger")
        if about.format != FORMAT:
            raise ValueError(f"its format is {about.format}; this version reads {FORMAT}")
        layers = {FIRST: _layers(found.about["layers"], about.report)}
        for name, own in about.encoders.items():
            layers[name] = _layers(found.about[f"layers.{name}"], own.report)
        lacking = [name for name in layers if name not in about.base]
        if lacking or not layers.keys() <= {FIRST, SECOND}:
            raise ValueError(f"ledger.base has no {', '.join(lacking or layers)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no {_KIND} ({error}); {_REMEDY}") from error
    return layers, ledger


def _layers(text: str, report: StageTwoReport) -> tuple[StoredLayer, ...]:
    layers = typed_values.convert(loads(text), tuple[StoredLayer, ...], "layers")
    numbers = [layer.layer for layer in layers]
    if numbers != sorted(set(numbers)) or numbers != [one.layer for one in report.layers]:
        raise ValueError("its layers are not those of its report, in ascending order")
    return layers


def _require_fitting(arrays: Mapping[str, np.ndarray], layers: Sequence[StoredLayer]) -> None:
    """ValueError unless the arrays are just those that `layers` speak of."""
    wanted = {
        f"{WEIGHT.format(stored.layer)}{part}": stored
        for stored in layers
        for part in ([""] if stored.form == "dense" else [".up", ".down"])
    }
    arrays = stored_units.without(arrays)
    if arrays.keys() != wanted.keys():
        raise ValueError(f"its tensors are {shown(sorted(arrays))}, not {shown(sorted(wanted))}")
    for name, stored in wanted.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.ndim != 2 or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, or not finite")
        ranks = {"up": array.shape[-1], "down": array.shape[0]}
        if ranks.get(name.rpartition(".")[2], stored.rank) != stored.rank:
            raise ValueError(f"{name} has shape {array.shape}, not of rank {stored.rank}")


def read_report(ledger: Mapping[str, Any]) -> StageTwoReport:
    """What Stage II did, from the ledger."""
    return typed_values.section(ledger["report"], StageTwoReport, "ledger.report")


def make_ledger(
    concepts: ConceptBank,
    base: Mapping[str, str],
    moments: Mapping[str, SecondMoments | UnitStatistics],
    config: StageTwoConfig,
    reports: Mapping[str, StageTwoReport],
    edited: Mapping[str, str],
) -> dict[str, Any]:
    """All that is in an edit, as JSON values.

    Args:
        concepts: what was solved; those of strength 0 are not in the edit.
        base: hashes of the base model, see `memories.model_hashes`.
        moments: the second moments used, or the statistics of units, by text encoder.
        config: Stage II's settings.
        reports: what Stage II did, by text encoder.
        edited: hashes of the edited text encoders' float32 parameters, by part.
    """
    records = [concepts.records[concept.memory] for concept in concepts.active]
    about = {
        name: {
            "edited": edited[name],
            "moments": _measured(moments[name]),
            "stage_two": dataclasses.asdict(config.of(name)),
            "report": dataclasses.asdict(report),
        }
        for name, report in reports.items()
    }
    nothing = dataclasses.asdict(StageTwoReport((), 0.0, 0.0))
    untouched = {
        "edited": base[FIRST],
        "moments": {},
        "stage_two": dataclasses.asdict(config),
        "report": nothing,
    }
    first = about.pop(FIRST, untouched)
    ledger = {
        "format": FORMAT,
        "base": dict(base),
        "edited": first["edited"],
        "stage_one": _distinct([record.provenance["stage_one"] for record in records]),
        "moments": first["moments"],
        "stage_two": first["stage_two"],
        "report": first["report"],
        "requests": [
            {
                "source": concept.request.source,
                "dest": list(concept.request.dests),
                "task": concept.request.task,
                "weight": concept.request.weight,
                "strength": concept.strength,
                "memory": concept.memory,
            }
            for concept in concepts.active
        ],
    }
    return ledger | ({"encoders": about} if about else {})


def _measured(moments: SecondMoments | UnitStatistics) -> dict[str, Any]:
    """What Stage II knew of the encoder, and from how much text."""
    if isinstance(moments, SecondMoments):
        return dataclasses.asdict(moments.provenance) | {"tokens": moments.count}
    return {
        "model_hash": moments.model_hash,
        "captions": moments.captions,
        "layers": [moments.block],
        "tokens": len(moments.reference),
    }


def _distinct(items: Sequence[Any]) -> list[Any]:
    return [item for index, item in enumerate(items) if item not in items[:index]]
