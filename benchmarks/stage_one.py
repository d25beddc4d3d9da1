"""Stage I: a batch of concepts in one compiled loop against one concept after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks import workload
from benchmarks.released import stage_one as released
from benchmarks.results import Check, Row
from benchmarks.settings import Settings
from benchmarks.timing import take_turns, timed
from emcid_jax import parallel
from emcid_jax.config import StageOneConfig
from emcid_jax.editing import loop, preparation, stage_one, training_images
from emcid_jax.editing.loop import StageOneResult
from emcid_jax.editing.objective import Params, StageOneInputs
from emcid_jax.pipeline import Pipeline


def measure(pipeline: Pipeline, pipe: Any, settings: Settings) -> list[Row]:
    """From training images to memories, equal steps; both sides get the same images.

    Ours includes what is computed once per concept and the held-out losses; compile time is apart.
    """
    config = dataclasses.replace(
        StageOneConfig(),
        steps=settings.steps,
        concept_batch=settings.concepts,
        image_steps=settings.sampler_steps,
    )
    edits = workload.edits(pipeline, settings.concepts)
    seeds = [request.seed for request in edits.requests]
    images = training_images.draw(pipeline, edits.destination, seeds, config)
    mesh = parallel.make_mesh(jax.devices()[:1])
    few = range(settings.released_concepts)

    def prepare() -> StageOneInputs:
        tokens = edits.source_tokens, edits.destination_tokens
        return preparation.prepare(pipeline, *tokens, seeds, images, config, mesh)

    def theirs(config: StageOneConfig) -> np.ndarray:
        offsets = [
            released.optimise(
                pipe,
                edits.source[i],
                edits.destination[i],
                edits.source_tokens.positions[i],
                images[i, 0],
                seeds[i],
                config,
            )
            for i in few
        ]
        return np.stack(offsets)

    inputs = prepare()
    compiled = timed(lambda: stage_one.compile_program(pipeline, inputs, config, mesh))

    def ours() -> StageOneResult:
        return stage_one.optimise(pipeline, prepare(), config, mesh, compiled.result)

    theirs(dataclasses.replace(config, steps=1))
    baseline, batch = take_turns(settings.repeats, lambda: theirs(config), ours)
    result: StageOneResult = batch.result
    start, end = (float(losses.total[: len(few)].mean()) for losses in (result.start, result.end))
    expected = _held_out(pipeline, inputs, baseline.result, config)
    # Both sides draw their own noise, so the losses agree only within that noise.
    check = Check(
        f"held-out loss after {settings.steps} steps, emcid_jax / released",
        end / expected,
        high=1.1,
    )
    details = {
        "held-out loss before": start,
        "held-out loss after, emcid_jax": end,
        "held-out loss after, released": expected,
        "concepts of the held-out losses": len(few),
        "concepts together, emcid_jax": settings.concepts,
        "seconds to compile, once": compiled.seconds,
    }
    return [
        Row(
            f"Stage I, {settings.steps} steps",
            "s per concept",
            baseline.seconds / len(few),
            batch.seconds / settings.concepts,
            5.0,
            (check,),
            details,
        )
    ]


def _held_out(
    pipeline: Pipeline, inputs: StageOneInputs, offsets: np.ndarray, config: StageOneConfig
) -> float:
    """Our held-out loss of the released procedure's offsets: one measure for both."""
    few = jax.tree.map(lambda leaf: leaf[: len(offsets)], inputs)

    @jax.jit
    def loss(params: Params, inputs: StageOneInputs, delta: Array) -> Array:
        return loop.held_out_loss(pipeline, params, inputs, delta, config).total.mean()

    return float(loss(stage_one.model_params(pipeline), few, offsets))
