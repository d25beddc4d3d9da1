"""An edited text encoder as files that other tools load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emcid_jax.models.text.clip import disk_name
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.weights.params import write_params
from emcid_jax.pipelines.stored_types import commonest, stored_types
from emcid_jax.storage import checksums, ownership
from emcid_jax.storage.casting import in_type
from emcid_jax.storage.files import replacing_folder
from emcid_jax.storage.text_files import read_json_object

WEIGHTS = "model.safetensors"


def write_text_encoder(
    target: Path,
    params: Mapping[str, Any],
    source: Path,
    dtype: str = "source",
    variant: str = "",
    part: str = FIRST,
) -> None:
    """Writes a drop-in text encoder folder: the old one or the new one whenever the process dies.

    Args:
        target: the folder; an earlier one of this program's is replaced.
        params: the edited parameters.
        source: the base model's folder of that text encoder, whose other files (config.json) are
            copied.
        dtype: stored type; `source` keeps every tensor's of the base model.
        variant: which of the base model's weight files, see `shards.weight_files`.
        part: which text encoder of the base model it is.

    Raises:
        UserError: see `require_replaceable`; a value does not fit `dtype`.
    """
    require_replaceable(target)
    with replacing_folder(target) as staging:
        for file in source.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, staging / file.name)
        kept = stored_types(source, part, variant) if dtype == "source" else None
        _set_dtype(staging / "config.json", commonest(kept.values()) if kept else dtype)
        first = params["text_model"]["encoder"]["layers.0"]["mlp"]["fc1"]["kernel"]
        config = (staging / "config.json").read_bytes()
        (staging / "config.json").write_bytes(with_width(config, first.shape[1]))
        about = {ownership.SIGNATURE: ownership.signature(staging)}
        write_params(staging / WEIGHTS, params, kept or dtype, about)
        require_replaceable(target)


def require_replaceable(target: Path) -> None:
    """UserError if a text encoder must not be exported to `target`.

    That is so inside of a model's folder, and where anything lies that this program did not write.
    """
    ownership.require_own_folder(target, WEIGHTS)
    ownership.require_apart(target.parent, f"the text encoder goes to {str(target)!r}")


def write_clip(path: Path, arrays: Mapping[str, np.ndarray], dtype: str = "source") -> None:
    """Writes a text encoder as the one file that ComfyUI and Forge keep under `models/clip`.

    They know the kind (`clip_l`; `clip_h` of Stable Diffusion 2; `clip_g`, the second of SDXL) by
    the names: those of transformers with `text_model.` before all but the projection.

    Args:
        path: the file, e.g. `clip_l.safetensors`; written by one rename.
        arrays: the edited tensors under the names of their folder.
        dtype: stored type; `source` keeps that of the tensors.

    Raises:
        UserError: a value does not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    named = {}
    for name, array in arrays.items():
        if not name.endswith(".position_ids"):
            kind = array.dtype if dtype == "source" else jnp.dtype(dtype)
            named[disk_name(name)] = in_type(array, kind, f"{path}: {name}")
    checksums.write_tensors(path, named, {"format": "pt", ownership.SIGNATURE: "clip"})


def with_width(config: bytes, width: int) -> bytes:
    """The content of config.json with another width of the MLPs; the very bytes where it has it."""
    content = json.loads(config)
    if content.get("intermediate_size", width) == width:
        return config
    return (json.dumps(content | {"intermediate_size": width}, indent=2) + "\n").encode()


def _set_dtype(path: Path, dtype: str) -> None:
    """Says the stored type in config.json where the base model's says one (old and new name)."""
    content = read_json_object(path, "config.model.path")
    said = [name for name in ("dtype", "torch_dtype") if name in content]
    if any(content[name] != dtype for name in said):
        path.write_text(json.dumps(content | dict.fromkeys(said, dtype), indent=2) + "\n")
