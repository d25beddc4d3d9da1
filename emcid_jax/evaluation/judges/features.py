"""Networks that turn images into vectors: what CLIP scores and FID compare."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from emcid_jax.evaluation.judges.classifier import Judge
from emcid_jax.evaluation.judges.resize import BILINEAR, stretched
from emcid_jax.models.scoring.inception import DIM, SIZE, InceptionV3, read_inception
from emcid_jax.models.scoring.vit import ViT
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime.finite import require_finite
from emcid_jax.storage.hashing import fingerprint


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
    """A frozen network over images."""

    name: str
    """What the vectors are, for reports."""
    fingerprint: str
    """SHA-256 over weights and preprocessing: vectors are comparable within one."""
    dim: int
    """Length of a vector."""
    prepare: Callable[[np.ndarray], np.ndarray]
    """One image of any size, bytes, to the network's input, float32."""
    apply: Callable[[np.ndarray], Array]
    """A batch of inputs to vectors; compiled."""

    def __call__(
        self, images: Sequence[np.ndarray] | np.ndarray, *, batch: int = 32
    ) -> Float32[np.ndarray, "image dim"]:
        """Vectors of images (uint8, height x width x 3, each of its own size if need be).

        `batch` images go through the network together; the last batch is padded, so that one
        shape is compiled. UserError if a vector is not finite.
        """
        found = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(images), batch):
            part = [self.prepare(image) for image in images[start : start + batch]]
            inputs = np.stack(part + part[-1:] * (batch - len(part)))
            found.append(np.asarray(self.apply(inputs), np.float32)[: len(part)])
        return require_finite(np.concatenate(found), f"{self.name} features", "picture")


def judge_features(judge: Judge) -> Embedder:
    """What the judge's classifier reads: the class token after the final norm."""

    mean, std = (np.array(values, np.float32) for values in (judge.mean, judge.std))

    def prepare(image: np.ndarray) -> np.ndarray:
        pixels = stretched(image, judge.size, BILINEAR) / np.float32(255)
        return (pixels - mean) / std

    config = judge.model.config
    return Embedder(
        "judge",
        judge.fingerprint,
        config.hidden_size,
        prepare,
        functools.partial(_class_token, judge.params["vit"], model=ViT(config)),
    )


def inception_features(file: Path) -> Embedder:
    """FID's own features, of images stretched to 299 x 299 as clean-FID does it.

    Weights: see `emcid_jax.models.scoring.inception`.
    Raises `UserError` for a file that cannot be used.
    """
    params = read_inception(file)

    def prepare(image: np.ndarray) -> np.ndarray:
        return (stretched(image, (SIZE, SIZE)) - np.float32(128)) / np.float32(128)

    return Embedder(
        "InceptionV3",
        fingerprint(params_hash(params), "stretched, bicubic, cut"),
        DIM,
        prepare,
        functools.partial(_inception, params),
    )


@jax.jit
def _inception(
    params: Any, pixels: Float[Array, "image height width 3"]
) -> Float[Array, "image dim"]:
    return jnp.asarray(InceptionV3().apply({"params": params}, pixels))


@functools.partial(jax.jit, static_argnames="model")
def _class_token(
    params: Any, pixels: Float[Array, "image height width 3"], *, model: ViT
) -> Float[Array, "image dim"]:
    return jnp.asarray(model.apply({"params": params}, pixels))[:, 0]
