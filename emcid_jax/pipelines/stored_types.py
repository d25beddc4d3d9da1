"""The types in which a model's weights are stored, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emcid_jax.models.weights.params import hf_name
from emcid_jax.models.weights.safetensors_files import FLOATS, read_header
from emcid_jax.models.weights.shards import weight_files
from emcid_jax.pipelines.pipeline import RENAMES
from emcid_jax.storage import checkpoints


def stored_types(source: Path, part: str, variant: str = "") -> dict[str, str]:
    """Stored type of every parameter of one part of a model, by its name (`params.hf_name`).

    Args:
        source: the part's folder in a model's folder.
        part: `text_encoder`, `unet` or `vae`.
        variant: which of its weight files, see `shards.weight_files`.

    Parameters are float32 in memory, so float64 counts as that: it is the most that is written.
    """
    if checkpoints.holds_weights(source.parent):
        found = checkpoints.stored_types(source.parent)
        return {hf_name(path[1:]): kind for path, kind in found.items() if path[0] == part}
    rename, types = RENAMES[part], {}
    for file in weight_files(source, variant):
        for stored, kind in read_header(file).kinds.items():
            name = rename(stored) if rename else stored
            if kind in FLOATS:  # Files may keep integer buffers beside the weights.
                wide = kind == "F64"
                types[name] = "float32" if wide else np.dtype(FLOATS[kind]).name
    return types


def commonest(types: Iterable[str]) -> str:
    """The type of most tensors, for formats that name a single one."""
    return Counter(types).most_common(1)[0][0]
