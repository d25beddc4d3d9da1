"""The results of an edit as files that other tools load: the weight edit and the text encoder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emcid_jax.errors import UserError
from emcid_jax.files import write_atomically
from emcid_jax.models.weights import write_params

WEIGHT = "text_model.encoder.layers.{}.mlp.fc2.weight"
"""Name on disk of the weight that block {} gets changed."""


def write_edit(
    path: Path, deltas: Mapping[int, Float[np.ndarray, "out inner"]], ledger: Mapping[str, Any]
) -> None:
    """Writes the weight edit as one safetensors file, by one rename.

    Tensors are the changes dW (float32, to be *added*) under the names of the weights that they
    change; the metadata field `ledger` (JSON) says what is in it and which model it is for.
    """
    arrays = {
        WEIGHT.format(layer): np.ascontiguousarray(delta, np.float32)
        for layer, delta in deltas.items()
    }
    metadata = {"format": "pt", "ledger": json.dumps(ledger, ensure_ascii=False)}
    write_atomically(path, save(arrays, metadata=metadata))


def read_edit(path: Path) -> tuple[dict[int, Float[np.ndarray, "out inner"]], dict[str, Any]]:
    """Changes by layer, and the ledger. UserError if `path` is no weight edit."""
    before, after = WEIGHT.split("{}")
    try:
        with safe_open(path, framework="np") as file:
            ledger = json.loads(file.metadata()["ledger"])
            deltas = {
                int(name.removeprefix(before).removesuffix(after)): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (not a mapping)
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a weight edit ({error}); make it again") from error
    return dict(sorted(deltas.items())), ledger


def stored_dtype(folder: Path) -> str:
    """Type of the weights of a text encoder folder: float32, float16 or bfloat16."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    files = sorted(folder.glob("*.safetensors"))
    usual = folder / "model.safetensors"  # Variants such as model.fp16.safetensors may lie beside.
    with safe_open(usual if usual in files else files[0], framework="np") as handle:
        kinds = {handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    # Files may keep integer position_ids beside the weights.
    return next(names[kind] for kind in sorted(kinds) if kind in names)


def write_text_encoder(
    target: Path, params: Mapping[str, Any], source: Path, dtype: str = "source"
) -> None:
    """Writes a drop-in `text_encoder` folder, complete or absent whenever the process dies.

    Args:
        target: the folder; an earlier one is replaced.
        params: the edited parameters.
        source: the base model's text encoder folder, whose other files (config.json) are copied.
        dtype: stored type; `source` keeps that of the base model.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for file in source.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, staging / file.name)
        stored = stored_dtype(source) if dtype == "source" else dtype
        write_params(staging / "model.safetensors", params, stored)
        _set_dtype(staging / "config.json", stored)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _set_dtype(path: Path, dtype: str) -> None:
    """Says the stored type in config.json where the base model's says one (old and new name)."""
    content = json.loads(path.read_text())
    said = [name for name in ("dtype", "torch_dtype") if name in content]
    if any(content[name] != dtype for name in said):
        path.write_text(json.dumps(content | dict.fromkeys(said, dtype), indent=2) + "\n")
