"""A weight edit under kohya's names, which most tools load: as a LoRA, or dW as it is.

In a LoRA, dW of every layer is cut to a rank by its singular values: what is lost is stated, not
hidden. Tools that take full differences (`.diff`) get dW itself. Both text encoders of SDXL go into
one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.editing.export import factors, kohya
from emcid_jax.editing.export.edit_file import WEIGHT, EditFile, Edits, by_part, require_own_width
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums, ownership
from emcid_jax.storage.casting import in_type

_DIFF = {"weight": "diff", "bias": "diff_b"}


class LoraLayer(NamedTuple):
    """What became of one layer."""

    part: str
    """Its text encoder."""
    layer: int
    rank: int
    error: float
    """|up @ down - dW| / |dW| (Frobenius), of the values as stored."""


def write_lora(
    path: Path,
    content: EditFile | Edits,
    ledger: Mapping[str, Any],
    rank: int,
    dtype: str = "float32",
) -> tuple[LoraLayer, ...]:
    """Writes the LoRA, by one rename; at strength 1 it adds the edit's best rank-`rank` part.

    Args:
        path: the file.
        content: the edit, or those of both text encoders of SDXL.
        ledger: its ledger, for the metadata.
        rank: columns of every `lora_up`, at most as many as the layer of the highest rank has; 0
            takes that rank, so that nothing is cut. All layers have the same: diffusers scales
            them by one alpha.
        dtype: stored type, float32 or float16.

    Raises:
        UserError: the values do not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    require_own_width(content, "a LoRA")
    if any(edit.units() for edit in by_part(content).values()):
        raise UserError(
            "config.edit: this edit changes biases, which a LoRA has none of; use operation diff, "
            "or one that writes whole weights (folder, apply, clip, checkpoint)"
        )
    arrays: dict[str, np.ndarray] = {}
    layers, edits = [], by_part(content)
    highest = max(stored.rank for edit in edits.values() for stored in edit.layers)
    size = min(rank or highest, highest)
    for part, layer, delta in _deltas(edits):
        left, values, right = factors.svd(edits[part].arrays, WEIGHT.format(layer))
        root = np.sqrt(values[:size])
        up, down = (
            in_type(_widened(factor, shape), dtype, f"{path}: layer {layer}")
            for factor, shape in (
                (left[:, :size] * root, (len(left), size)),
                (root[:, None] * right[:size], (size, right.shape[1])),
            )
        )
        module = WEIGHT.format(layer).removesuffix(".weight")
        arrays |= kohya.pair(kohya.name(part, module, edits), up, down)
        norm = np.linalg.norm(delta)
        lost = np.linalg.norm(up.astype(np.float64) @ down.astype(np.float64) - delta)
        layers.append(LoraLayer(part, layer, size, float(lost / norm) if norm else 0.0))
    found = kohya.family(edits)
    network = {"ss_network_module": "networks.lora"}
    network |= {"ss_network_dim": str(size), "ss_network_alpha": str(size)}
    about = kohya.metadata("lora", found, ledger) | network
    checksums.write_tensors(path, arrays | kohya.mark(found, size, dtype), about)
    return tuple(layers)


def _deltas(edits: Edits) -> Iterator[tuple[str, int, np.ndarray]]:
    """Part, layer and dW of all that is edited."""
    for part, edit in edits.items():
        for layer, delta in edit.deltas().items():
            yield part, layer, delta


def _widened(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Zeros of that shape with `array` in their corner: a narrower encoder has fewer directions."""
    room = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
    return np.pad(array, room)


def write_diff(
    path: Path, content: EditFile | Edits, ledger: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Writes all changes whole, by one rename; at strength 1 a tool adds the edit itself.

    ComfyUI, the A1111 family and InvokeAI add tensors called `<kohya's name>.diff` to the weights,
    and `.diff_b` to the biases.

    Args:
        path: the file.
        content: the edit, or those of both text encoders of SDXL.
        ledger: its ledger, for the metadata.
        dtype: stored type, float32 or float16.

    Raises:
        UserError: the values do not fit `dtype`, or somebody else's file lies at `path`.
    """
    ownership.require_own_file(path)
    require_own_width(content, "a file of differences")
    arrays, edits = {}, by_part(content)
    every = [(part, *one) for part, edit in edits.items() for one in edit.changes().items()]
    for part, weight, delta in every:
        stored = in_type(delta, dtype, f"{path}: the change of {weight}")
        module, _, kind = weight.rpartition(".")
        arrays[f"{kohya.name(part, module, edits)}.{_DIFF[kind]}"] = stored
    found = kohya.family(edits)
    arrays |= kohya.mark(found, 1, dtype)
    checksums.write_tensors(path, arrays, kohya.metadata("diff", found, ledger))
