"""A model and a judge as `scored_images` wants them: equal batches, one compiled program each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.draw import Classify, Generate
from emcid_jax.evaluation.judges.classifier import Judge
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.storage.hashing import fingerprint


def judging(judge: Judge, groups: Sequence[str], batch: int) -> Classify:
    """Judging in the label groups `groups`, one after the other, `batch` images at a time."""

    def classify(images: np.ndarray) -> np.ndarray:
        read = judge.classify(images, batch=batch)
        return np.concatenate([read[group] for group in groups], axis=-1)

    return classify


def drawing(
    pipeline: Pipeline,
    config: EvaluationConfig,
    batch: int,
    mesh: Mesh | None,
    *,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
) -> Generate:
    """Drawing by `pipeline`, `batch` images at a time; fewer are padded: it is one program.

    `original_size` and `crop` are those of `generate`.
    """

    def draw(prompts: list[str], seeds: list[int]) -> np.ndarray:
        missing = batch - len(prompts)
        images = generate(
            pipeline,
            prompts + prompts[-1:] * missing,
            seeds + seeds[-1:] * missing,
            steps=config.steps,
            guidance=config.guidance,
            batch=batch,
            mesh=mesh,
            original_size=original_size,
            crop=crop,
        )
        return images[: len(prompts)]

    return draw


def edited_fingerprint(clean: str, base: Pipeline, edited: Pipeline) -> str:
    """What images of `edited` depend on: what those of `base` do, and every part that differs."""
    changed = (part for name, part in edited.params.items() if part is not base.params[name])
    return fingerprint(clean, *map(params_hash, changed))
