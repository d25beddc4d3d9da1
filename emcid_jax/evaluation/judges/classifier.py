"""The judge: a ViT classifier from a Hugging Face folder, softmax taken within label groups.

Any `ViTForImageClassification` folder serves, `google/vit-base-patch16-224` included. Labels and
their groups: `emcid_jax.evaluation.judges.labels`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from emcid_jax.evaluation.judges.labels import LabelGroup, label_groups
from emcid_jax.models.scoring.vit import ViTConfig, ViTForImageClassification, disk_name
from emcid_jax.models.weights.params import abstract_params, params_hash, read_params
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.runtime.finite import require_finite
from emcid_jax.storage.hashing import fingerprint
from emcid_jax.storage.text_files import read_json_object


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A frozen classifier and its label table; made by `load_judge`."""

    model: ViTForImageClassification
    params: Mapping[str, Any]
    groups: Mapping[str, LabelGroup]
    size: tuple[int, int]
    """Height and width of the classifier's input; other images are resized (bilinear)."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    """SHA-256 over weights, labels and preprocessing: scores are comparable within one."""

    def classify(
        self, images: UInt8[np.ndarray, "image height width 3"], *, batch: int = 64
    ) -> dict[str, Float[np.ndarray, "image _"]]:
        """Probabilities of each group's labels, float32, from images in 0..255.

        Images go through the compiled classifier `batch` at a time; the last batch is padded, so
        one shape is compiled. UserError if a score is not finite.
        """
        logits = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            padded = np.zeros((batch, *images.shape[1:]), np.uint8)
            padded[: len(part)] = part
            out = _logits(self.params, padded, self.mean, self.std, self.model, self.size)
            logits.append(np.asarray(out, np.float32)[: len(part)])
        every = np.concatenate(logits) if logits else np.zeros((0, self._outputs), np.float32)
        require_finite(every, "the judge's scores", "picture")
        return {name: _softmax(every[:, list(g.columns)]) for name, g in self.groups.items()}

    @property
    def _outputs(self) -> int:
        return sum(len(group.columns) for group in self.groups.values())


def load_judge(folder: Path) -> Judge:
    """Load a classifier folder (`config.json`, `*.safetensors`, `preprocessor_config.json`).

    Without a preprocessor file, mean and standard deviation are 0.5. Raises `UserError` naming the
    file and field for a missing or unusable folder.
    """
    config = read_json_object(folder / "config.json", "the classifier's config")
    labels = _labels(config, folder / "config.json")
    vit = ViTConfig.from_dict(config, folder / "config.json")
    vit.require_colour(folder / "config.json")
    model = ViTForImageClassification(vit)
    size = (vit.image_size, vit.image_size)
    mean, std = normalisation(folder / "preprocessor_config.json")
    pixels = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    params = read_params(folder, abstract_params(model, pixels), disk_name)
    table = json.dumps([labels, size, mean, std])
    return Judge(
        model,
        params,
        label_groups(labels),
        size,
        mean,
        std,
        fingerprint(params_hash(params), table),
    )


@functools.partial(jax.jit, static_argnames=("mean", "std", "model", "size"))
def _logits(
    params: Any,
    images: UInt8[Array, "image height width 3"] | UInt8[np.ndarray, "image height width 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model: ViTForImageClassification,
    size: tuple[int, int],
) -> Float[Array, "image label"]:
    pixels = jnp.asarray(images).astype(jnp.float32) / 255.0
    if pixels.shape[1:3] != size:
        pixels = jax.image.resize(pixels, (len(images), *size, 3), "linear")
    normal = (pixels - jnp.array(mean)) / jnp.array(std)
    logits = model.apply({"params": params}, normal)
    return jnp.asarray(logits).astype(jnp.float32)


def _softmax(logits: Float[np.ndarray, "image label"]) -> Float[np.ndarray, "image label"]:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return (shifted / shifted.sum(-1, keepdims=True)).astype(np.float32)


def _labels(config: Mapping[str, Any], path: Path) -> list[str]:
    table = config.get("id2label")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: field id2label is missing; a judge needs its label names")
    try:
        labels = [str(table[str(i)]) for i in range(len(table))]
    except KeyError as error:
        raise UserError(f"{path}: field id2label has no entry {error}; ids run from 0") from None
    try:
        label_groups(labels)
    except ValueError as error:
        raise UserError(f"{path}: field id2label: {error}") from None
    return labels


def normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, 0.5 where the file does not say."""
    found = read_json_object(path, "the preprocessor's config") if path.exists() else {}
    half = [0.5, 0.5, 0.5]
    mean, std = (found.get(field, half) for field in ("image_mean", "image_std"))
    for field, values in (("image_mean", mean), ("image_std", std)):
        numbers = isinstance(values, list) and len(values) == 3
        if not numbers or not all(type(value) in (int, float) for value in values):
            raise UserError(f"{path}: field {field} is {shown(values)}; give three numbers")
    if not all(value > 0 for value in std):
        raise UserError(f"{path}: field image_std is {shown(std)}; give three numbers > 0")
    return tuple(map(float, mean)), tuple(map(float, std))
