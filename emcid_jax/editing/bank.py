"""The concept bank: memories on disk, each filed under all that determines it.

One safetensors file per concept, named by the hash of its provenance. A memory is found again only
when request, settings, model and tokenizer are all the same, so nothing stale can be reused, and
banks of different runs can be merged by copying files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.training_images import reads_files
from emcid_jax.files import write_atomically

FORMAT = 1
"""Raised whenever Stage I computes something else from the same inputs."""

Provenance = Mapping[str, Any]


class Memory(NamedTuple):
    """What Stage I found for one concept, float32."""

    z: Float[np.ndarray, " dim"]
    """Wanted output of block L at the last subject token."""
    delta: Float[np.ndarray, " dim"]
    """z minus the clean state."""
    curve: Float[np.ndarray, " step"]
    """Training loss of every step."""
    start: Float[np.ndarray, 4]
    """Held-out loss at delta = 0: total, noise, text, decay."""
    end: Float[np.ndarray, 4]
    """The same at the final delta."""


def provenance(
    request: EditRequest, config: StageOneConfig, model: Mapping[str, str]
) -> dict[str, Any]:
    """All that determines a request's memory, as JSON values.

    Image files count by content, where the settings read them. `model` holds hashes of the model's
    parts. The request's weight and evaluation fields do not matter, nor does, up to rounding, the
    number of concepts optimised together: they are left out.
    """
    settings = dataclasses.asdict(config)
    del settings["concept_batch"]
    files = request.image_paths if reads_files(config) else ()
    return {
        "format": FORMAT,
        "source": request.source,
        "dest": list(request.dests),
        "templates": list(request.templates),
        "seed": request.seed,
        "images": [_file_hash(Path(path)) for path in files],
        "stage_one": settings,
        "model": dict(sorted(model.items())),
    }


def key(about: Provenance) -> str:
    """Name of the memory with this provenance: 64 hex digits."""
    text = json.dumps(about, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path, about: Provenance) -> Memory | None:
    """The memory with this provenance, or None if the bank has no intact record of it."""
    try:
        with safe_open(_path(folder, about), framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in Memory._fields}
    except (OSError, SafetensorError):
        return None
    return Memory(**arrays)


def read_details(folder: Path, about: Provenance) -> dict[str, Any]:
    """The details that `write` stored beside the memory; empty without an intact record."""
    try:
        with safe_open(_path(folder, about), framework="np") as file:
            return json.loads(file.metadata()["details"])
    except (OSError, SafetensorError):
        return {}


def write(folder: Path, about: Provenance, memory: Memory, details: Mapping[str, Any]) -> None:
    """Files a memory, by one rename; `details` (JSON) are what else is worth knowing about it."""
    arrays = {name: np.ascontiguousarray(array) for name, array in memory._asdict().items()}
    metadata = {
        "provenance": json.dumps(about, sort_keys=True, ensure_ascii=False),
        "details": json.dumps(dict(details)),
    }
    write_atomically(_path(folder, about), save(arrays, metadata=metadata))


def _path(folder: Path, about: Provenance) -> Path:
    return folder / f"{key(about)}.safetensors"


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
