"""A weight edit under kohya's names, which most tools load: as a LoRA, or dW as it is.

In a LoRA, dW of every layer is cut to a rank by its singular values: what is lost is stated, not
hidden. Tools that take full differences (`.diff`) get dW itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg

from emcid_jax.editing.export.edit_file import EditFile, require_own_width
from emcid_jax.runtime import checksums, ownership
from emcid_jax.runtime.errors import UserError

NAME = "lora_te_text_model_encoder_layers_{}_mlp_fc2"
"""kohya's name of the `mlp.fc2` of block {}."""
MARK = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
"""A pair of zeros has this name: by its width InvokeAI knows which base model a LoRA is for."""
ABOUT = {
    768: {
        "ss_base_model_version": "sd_v1",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "512x512",
    },
    1024: {"ss_base_model_version": "sd_v2"},
}
"""Width of the text encoder -> what the metadata say of its family. Which of the two sizes of
Stable Diffusion 2 it is cannot be told from an edit, so no modelspec is claimed for it."""


class LoraLayer(NamedTuple):
    """What became of one layer."""

    layer: int
    rank: int
    error: float
    """|up @ down - dW| / |dW| (Frobenius), of the values as stored."""


def write_lora(
    path: Path, content: EditFile, rank: int, dtype: str = "float32"
) -> tuple[LoraLayer, ...]:
    """Writes the LoRA, by one rename; at strength 1 it adds the edit's best rank-`rank` part.

    Args:
        path: the file.
        content: the edit.
        rank: columns of every `lora_up`, at most as many as the layer of the highest rank has; 0
            takes that rank, so that nothing is cut. All layers have the same: diffusers scales
            them by one alpha.
        dtype: stored type, float32 or float16.

    Raises:
        UserError: the values do not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    require_own_width(content, "a LoRA")
    arrays: dict[str, np.ndarray] = {}
    layers, width = [], 0
    highest = max(stored.rank for stored in content.layers)
    size = min(rank or highest, highest)
    for layer, delta in content.deltas().items():
        left, values, right = scipy.linalg.svd(delta, full_matrices=False)
        root = np.sqrt(values[:size])
        with np.errstate(over="ignore"):  # Said below.
            up = np.ascontiguousarray(left[:, :size] * root, dtype)
            down = np.ascontiguousarray(root[:, None] * right[:size], dtype)
        if not (np.isfinite(up).all() and np.isfinite(down).all()):
            raise UserError(f"{path}: layer {layer} does not fit {dtype}; use float32")
        arrays |= _pair(NAME.format(layer), up, down)
        norm = np.linalg.norm(delta)
        lost = np.linalg.norm(up.astype(np.float64) @ down.astype(np.float64) - delta)
        layers.append(LoraLayer(layer, size, float(lost / norm) if norm else 0.0))
        width = len(delta)
    arrays |= _pair(MARK, np.zeros((width, size), dtype), np.zeros((size, width), dtype))
    metadata = {
        "format": "pt",
        ownership.SIGNATURE: "lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(size),
        "ss_network_alpha": str(size),
        "modelspec.title": path.stem,
    }
    checksums.write_tensors(path, arrays, metadata | ABOUT.get(width, {}))
    return tuple(layers)


def _pair(name: str, up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one weight. Loaders scale by alpha / rank, which is 1."""
    return {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": np.array(len(down), up.dtype),
    }


def write_diff(path: Path, content: EditFile, dtype: str = "float32") -> None:
    """Writes dW of every layer whole, by one rename; at strength 1 a tool adds the edit itself.

    ComfyUI and the A1111 family add tensors called `<kohya's name>.diff` to the weights.

    Args:
        path: the file.
        content: the edit.
        dtype: stored type, float32 or float16.

    Raises:
        UserError: the values do not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    require_own_width(content, "a file of differences")
    arrays = {}
    for layer, delta in content.deltas().items():
        with np.errstate(over="ignore"):  # Said below.
            arrays[f"{NAME.format(layer)}.diff"] = stored = np.ascontiguousarray(delta, dtype)
        if not np.isfinite(stored).all():
            raise UserError(f"{path}: layer {layer} does not fit {dtype}; use float32")
    checksums.write_tensors(path, arrays, {"format": "pt", ownership.SIGNATURE: "diff"})
