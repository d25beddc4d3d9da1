"""A weight edit under kohya's names, which most tools load: as a LoRA, or dW as it is.

In a LoRA, dW of every layer is cut to a rank by its singular values: what is lost is stated, not
hidden. Tools that take full differences (`.diff`) get dW itself. Both text encoders of SDXL go into
one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg

from emcid_jax.editing.export.edit_file import EditFile, Edits, by_part, require_own_width
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums, ownership

NAME = "{}_text_model_encoder_layers_{}_mlp_fc2"
"""kohya's name of an encoder's `mlp.fc2`; see `_begins` for the encoder, then comes the block."""
MARK = "{}_text_model_encoder_layers_0_self_attn_q_proj"
"""A pair of zeros has this name: by its width InvokeAI knows which base model a LoRA is for."""
Widths = tuple[int, ...]
ABOUT: Mapping[Widths, Mapping[str, str]] = {
    (768,): {
        "ss_base_model_version": "sd_v1",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "512x512",
    },
    (1024,): {"ss_base_model_version": "sd_v2"},
    (768, 1280): {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "1024x1024",
    },
}
"""Widths of the text encoders -> what the metadata say of their family. Which of the two sizes of
Stable Diffusion 2 it is cannot be told from an edit, so no modelspec is claimed for it."""


class LoraLayer(NamedTuple):
    """What became of one layer."""

    part: str
    """Its text encoder."""
    layer: int
    rank: int
    error: float
    """|up @ down - dW| / |dW| (Frobenius), of the values as stored."""


def write_lora(
    path: Path, content: EditFile | Edits, rank: int, dtype: str = "float32"
) -> tuple[LoraLayer, ...]:
    """Writes the LoRA, by one rename; at strength 1 it adds the edit's best rank-`rank` part.

    Args:
        path: the file.
        content: the edit, or those of both text encoders of SDXL.
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
    layers, edits = [], by_part(content)
    highest = max(stored.rank for edit in edits.values() for stored in edit.layers)
    size = min(rank or highest, highest)
    widths: dict[str, int] = {}
    for part, layer, delta in _deltas(edits):
        left, values, right = scipy.linalg.svd(delta, full_matrices=False)
        root = np.sqrt(values[:size])
        with np.errstate(over="ignore"):  # Said below.
            up = _widened(left[:, :size] * root, (len(left), size), dtype)
            down = _widened(root[:, None] * right[:size], (size, right.shape[1]), dtype)
        if not (np.isfinite(up).all() and np.isfinite(down).all()):
            raise UserError(f"{path}: layer {layer} does not fit {dtype}; use float32")
        arrays |= _pair(NAME.format(_begins(part, edits), layer), up, down)
        norm = np.linalg.norm(delta)
        lost = np.linalg.norm(up.astype(np.float64) @ down.astype(np.float64) - delta)
        layers.append(LoraLayer(part, layer, size, float(lost / norm) if norm else 0.0))
        widths[part] = len(delta)
    # An unedited encoder's width is that of the family that the edited ones belong to.
    for family in ABOUT:
        if len(family) == len(edits):
            full = dict(zip(edits, family, strict=True))
            widths = full if widths.items() <= full.items() else widths
    for part, width in widths.items():
        zeros = np.zeros((width, size), dtype), np.zeros((size, width), dtype)
        arrays |= _pair(MARK.format(_begins(part, edits)), *zeros)
    metadata = {
        "format": "pt",
        ownership.SIGNATURE: "lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(size),
        "ss_network_alpha": str(size),
        "modelspec.title": path.stem,
    }
    checksums.write_tensors(path, arrays, metadata | dict(ABOUT.get(tuple(widths.values()), {})))
    return tuple(layers)


def _begins(part: str, edits: Edits) -> str:
    """How kohya's names of a text encoder begin: SDXL's are numbered."""
    return "lora_te" + ({FIRST: "1", SECOND: "2"}[part] if len(edits) > 1 else "")


def _deltas(edits: Edits) -> Iterator[tuple[str, int, np.ndarray]]:
    """Part, layer and dW of all that is edited."""
    for part, edit in edits.items():
        for layer, delta in edit.deltas().items():
            yield part, layer, delta


def _widened(array: np.ndarray, shape: tuple[int, int], dtype: str) -> np.ndarray:
    """Zeros of that shape with `array` in their corner: a narrower encoder has fewer directions."""
    room = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
    return np.ascontiguousarray(np.pad(array, room), dtype)


def _pair(name: str, up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one weight. Loaders scale by alpha / rank, which is 1."""
    return {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": np.array(len(down), up.dtype),
    }


def write_diff(path: Path, content: EditFile | Edits, dtype: str = "float32") -> None:
    """Writes dW of every layer whole, by one rename; at strength 1 a tool adds the edit itself.

    ComfyUI and the A1111 family add tensors called `<kohya's name>.diff` to the weights.

    Args:
        path: the file.
        content: the edit, or those of both text encoders of SDXL.
        dtype: stored type, float32 or float16.

    Raises:
        UserError: the values do not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    require_own_width(content, "a file of differences")
    arrays, edits = {}, by_part(content)
    for part, layer, delta in _deltas(edits):
        name = NAME.format(_begins(part, edits), layer)
        with np.errstate(over="ignore"):  # Said below.
            arrays[f"{name}.diff"] = stored = np.ascontiguousarray(delta, dtype)
        if not np.isfinite(stored).all():
            raise UserError(f"{path}: layer {layer} does not fit {dtype}; use float32")
    checksums.write_tensors(path, arrays, {"format": "pt", ownership.SIGNATURE: "diff"})
