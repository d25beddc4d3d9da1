"""Drawing a batch of images with guidance: one compiled program against diffusers' pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import workload
from benchmarks.released import model
from benchmarks.results import Check, Row
from benchmarks.settings import Settings
from benchmarks.timing import take_turns
from emcid_jax.config import EvaluationConfig
from emcid_jax.pipelines.generate import generate, initial_noise
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel


def measure(pipeline: Pipeline, pipe: Any, settings: Settings) -> list[Row]:
    """From prompts to bytes; both sides start from the same noise."""
    prompts = [row[0] for row in workload.edits(pipeline, settings.images).source]
    seeds = list(range(len(prompts)))
    guidance = EvaluationConfig().guidance
    noise = initial_noise(pipeline, seeds)

    def theirs() -> np.ndarray:
        return model.draw(pipe, prompts, noise, settings.sampler_steps, guidance)

    def ours() -> np.ndarray:
        return generate(
            pipeline,
            prompts,
            seeds,
            steps=settings.sampler_steps,
            guidance=guidance,
            batch=settings.images,
            mesh=parallel.make_mesh(),
        )

    ours()  # compile
    theirs()
    baseline, timed = take_turns(settings.repeats, theirs, ours)
    difference = baseline.result.astype(float) - timed.result
    fidelity = 20 * np.log10(255 / max(np.sqrt(np.square(difference).mean()), 1e-3))
    check = Check("same images, PSNR in dB", float(fidelity), low=40.0)
    name = f"sampling, {settings.sampler_steps} steps, batch {settings.images}"
    return [Row(name, "s", baseline.seconds, timed.seconds, 1.0, (check,))]
