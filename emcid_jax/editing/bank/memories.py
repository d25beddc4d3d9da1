"""Memories on disk, each filed under all that determines it.

One safetensors file per concept, named by the hash of its provenance. A memory is found again only
when request, settings, model and tokenizer are all the same, so nothing stale can be reused. Every
record carries a checksum over all its bytes: damage is found when it is read. Which memories a bank
consists of is said in `concept_bank`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import Encoders, StageOneConfig
from emcid_jax.editing.bank import pack_file
from emcid_jax.editing.stage_one.training_images import reads_files
from emcid_jax.models.text.encoder import SECOND
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.storage import checksums
from emcid_jax.storage.files import file_hash, open_to_read, write_atomically
from emcid_jax.storage.json_text import loads

FORMAT = 1
"""Raised whenever Stage I computes something else from the same inputs."""

LATER: Mapping[str, Any] = {
    "text_tokens": 0,
    "edited_tokens": 1,
    "text_steps": 0,
    "shorten": 0.0,
}
"""Settings added since, with the value that does what was done before: at it they are left out of
the provenance, so memories of older versions are still found."""

OF_TWO = ("second_layer", "encoders", "pooled_text_loss")
"""Settings that mean nothing for a model with one text encoder."""

SUFFIX = ".safetensors"

_REMEDY = "restore it, or delete it and add its concept again"

Provenance = Mapping[str, Any]


class Memory(NamedTuple):
    """What Stage I found for one concept, float32."""

    z: Float[np.ndarray, " dim"]
    """Wanted outputs of block L at the edited tokens, one after the other."""
    delta: Float[np.ndarray, " dim"]
    """z minus the clean states."""
    curve: Float[np.ndarray, " step"]
    """Training loss of every step."""
    start: Float[np.ndarray, 4]
    """Held-out loss at delta = 0: total, noise, text, decay."""
    end: Float[np.ndarray, 4]
    """The same at the final delta."""

    @property
    def left(self) -> float:
        """What is left of the held-out loss: near 0, the source reads as the destination; near 1,
        as itself."""
        return float(self.end[0] / self.start[0]) if self.start[0] > 0 else 0.0


class Record(NamedTuple):
    """A memory with all that is filed with it."""

    provenance: Provenance
    """All that determines the memory, see `provenance`."""
    memory: Memory
    details: Mapping[str, Any]
    """What else is worth knowing about it (JSON)."""
    code: str = ""
    """Version of emcid_jax that filed it; empty while it is not on disk."""


def provenance(
    request: EditRequest, config: StageOneConfig, model: Mapping[str, str]
) -> dict[str, Any]:
    """All that determines a request's memory, as JSON values.

    Image files count by content, where the settings read them. `model` holds hashes of the model's
    parts. The request's weight and evaluation fields do not matter, nor does, up to rounding, the
    number of concepts optimised together: they are left out.
    """
    settings = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name != "concept_batch" and LATER.get(name, ...) != value
    }
    if SECOND not in model:
        settings = {name: value for name, value in settings.items() if name not in OF_TWO}
    files = request.image_paths if reads_files(config) else ()
    return {
        "format": FORMAT,
        "source": request.source,
        "dest": list(request.dests),
        "templates": list(request.templates),
        "seed": request.seed,
        "images": [file_hash(Path(path)) for path in files],
        "stage_one": settings,
        "model": dict(sorted(model.items())),
    }


def edited_tokens(about: Provenance) -> int:
    """How many tokens' states a memory with this provenance holds."""
    return about["stage_one"].get("edited_tokens", LATER["edited_tokens"])


def key(about: Provenance) -> str:
    """Name of the memory with this provenance: 64 hex digits."""
    return hashlib.sha256(_dumped(about).encode()).hexdigest()


def model_hashes(pipeline: Pipeline) -> dict[str, str]:
    """What a memory depends on beside its request: every part of the model, and its precision."""
    hashes = {name: params_hash(params) for name, params in pipeline.params.items()}
    return (
        hashes
        | tokenizer_hashes(pipeline)
        | {
            "scheduler": hash_of(dict(pipeline.scheduler_config)),
            "dtype": jnp.dtype(pipeline.dtype).name,
        }
    )


def tokenizer_hashes(pipeline: Pipeline) -> dict[str, str]:
    """By the tokenizer's folder in the model's: SHA-256 (hex) over names and bytes of its files."""
    folders = [part.tokenizer for part in pipeline.family.encoders]
    return {name: _folder_hash(pipeline.folder / name) for name in folders}


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def hash_of(content: Any) -> str:
    """SHA-256 (hex) of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path, about: Provenance) -> Memory | None:
    """The memory with this provenance, or None if the folder has no intact record of it."""
    record = _read_if_intact(folder, about)
    return record.memory if record else None


def read_details(folder: Path, about: Provenance) -> dict[str, Any]:
    """The details that `write` stored beside the memory; empty without an intact record."""
    record = _read_if_intact(folder, about)
    return dict(record.details) if record else {}


def read_record(folder: Path, name: str) -> Record:
    """The record called `name` (a `key`), every byte and field of it checked.

    UserError naming the file if it is missing or damaged.
    """
    return parse_record(read_content(folder, name), name, folder)


def read_content(folder: Path, name: str) -> bytes:
    """The bytes of the record called `name`, checked by their checksum; UserError as `read_record`.

    What they say is checked by `parse_record`.
    """
    path = f"{folder}/{name}{SUFFIX}"  # No Path: making one costs as much as hashing the file.
    try:
        with open_to_read(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such memory; restore it or add its concept again") from None
    except OSError as error:
        raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from error
    if not checksums.is_intact(content):
        raise UserError(f"{path}: damaged (its checksum does not fit); {_REMEDY}")
    return content


def parse_record(content: bytes, name: str, folder: Path) -> Record:
    """The record called `name` of `folder` in these bytes. UserError if they are no such record."""
    try:
        arrays = load(content)  # Refuses what is no safetensors file, so its header is one.
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if hashlib.sha256(said["provenance"].encode()).hexdigest() != name:
            raise ValueError("the name is not that of its content")
        about, details = loads(said["provenance"]), loads(said["details"])
        layer, tokens, model = about["stage_one"]["layer"], edited_tokens(about), about["model"]
        if type(layer) is not int or type(tokens) is not int or layer < 0 or tokens < 1:
            raise ValueError(f"layer is {shown(layer)}, edited_tokens {shown(tokens)}")
        _require_site_settings(about["stage_one"])
        if not isinstance(details, dict) or {type(value) for value in model.values()} != {str}:
            raise ValueError("details are no object, or model holds more than hashes")
        memory = Memory(**arrays)
        _require_memory(memory, tokens)
        return Record(about, memory, details, said["code"])
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/{name}{SUFFIX}: damaged ({error}); {_REMEDY}") from error
    except RecursionError as error:
        raise UserError(f"{folder}/{name}{SUFFIX}: nested too deeply; {_REMEDY}") from error


def _require_site_settings(settings: Mapping[str, Any]) -> None:
    """ValueError for settings of a second text encoder that Stage I does not write."""
    layer, encoders = settings.get("second_layer", 0), settings.get("encoders", "all")
    if type(layer) is not int or layer < 0 or encoders not in get_args(Encoders):
        raise ValueError(f"second_layer is {shown(layer)}, encoders {shown(encoders)}")


def _require_memory(memory: Memory, tokens: int) -> None:
    """ValueError for arrays that Stage I does not write."""
    for field, array in memory._asdict().items():
        if array.dtype != np.float32 or array.ndim != 1:
            raise ValueError(f"{field} is {array.dtype} of shape {array.shape}")
    if not (np.isfinite(memory.z).all() and np.isfinite(memory.delta).all()):
        raise ValueError("z or delta is not finite")
    if len(memory.z) != len(memory.delta) or not len(memory.z) or len(memory.z) % tokens:
        raise ValueError(
            f"z has {len(memory.z)} numbers, delta {len(memory.delta)}, for {tokens} tokens"
        )
    if len(memory.start) != 4 or len(memory.end) != 4:
        raise ValueError(f"start has {len(memory.start)} numbers, end {len(memory.end)}, not 4")


def write(folder: Path, about: Provenance, memory: Memory, details: Mapping[str, Any]) -> None:
    """Files a memory, by one rename; `details` (JSON) are what else is worth knowing about it."""
    arrays = memory._asdict()
    said = {
        "provenance": _dumped(about),
        "details": json.dumps(dict(details), sort_keys=True),
        "code": _code_version(),
    }
    pack_file.forget(folder, key(about))
    checksums.write_tensors(_path(folder, key(about)), arrays, said)


def copy_record(source: Path, target: Path, name: str) -> None:
    """Copies a record, byte by byte, after checking it. UserError if it is damaged."""
    content = read_content(source, name)
    parse_record(content, name, source)
    write_atomically(_path(target, name), content)


def _read_if_intact(folder: Path, about: Provenance) -> Record | None:
    try:
        return read_record(folder, key(about))
    except UserError:
        return None


def _code_version() -> str:
    try:
        return metadata.version("emcid_jax")
    except metadata.PackageNotFoundError:  # Run from a checkout.
        return "unknown"


def _dumped(about: Provenance) -> str:
    return json.dumps(about, sort_keys=True, ensure_ascii=False)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}{SUFFIX}"
