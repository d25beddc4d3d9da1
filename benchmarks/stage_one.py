"""Stage I: a batch of concepts in one compiled loop against one concept after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks import workload
from benchmarks.released import stage_one as released
from benchmarks.results import Check, Row
from benchmarks.settings import Settings
from benchmarks.timing import Timed, take_turns, timed
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import adam_loop, training_images
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.adam_loop import StageOneResult
from emcid_jax.editing.stage_one.loss import Params, StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import STAGE_ONE


def measure(pipeline: Pipeline, pipe: Any, settings: Settings) -> list[Row]:
    """From training images to memories, equal steps; both sides get the same images.

    Two rows of ours, with the settings of the bundled model's configs and without its `text_tokens`
    and `teacher_pool`. Both include what is computed once per concept and the held-out losses;
    compile time is apart.
    """
    config = dataclasses.replace(
        STAGE_ONE,
        steps=settings.steps,
        concept_batch=settings.concepts,
        image_steps=settings.sampler_steps,
    )
    plain = dataclasses.replace(config, text_tokens=0, teacher_pool=0)
    edits = workload.edits(pipeline, settings.concepts)
    seeds = [request.seed for request in edits.requests]
    images = training_images.draw(pipeline, edits.destination, seeds, config)
    mesh = parallel.make_mesh()
    few = range(settings.released_concepts)

    def theirs(config: StageOneConfig = config) -> np.ndarray:
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

    def prepare(config: StageOneConfig) -> StageOneInputs:
        tokens = edits.source_tokens, edits.destination_tokens
        return preparation.prepare(pipeline, *tokens, seeds, images, config, mesh)

    def compiled(config: StageOneConfig) -> tuple[Callable[[], StageOneResult], float]:
        inputs = prepare(config)
        found = timed(lambda: stage_one.compile_program(pipeline, inputs, config, mesh))

        def ours() -> StageOneResult:
            return stage_one.optimise(pipeline, prepare(config), config, mesh, found.result)

        return ours, found.seconds

    theirs(dataclasses.replace(config, steps=1))
    (ours, seconds), (ours_plain, seconds_plain) = compiled(config), compiled(plain)
    baseline, batch, batch_plain = take_turns(settings.repeats, theirs, ours, ours_plain)
    held_out = functools.partial(_held_out, pipeline, prepare(plain), config=plain)
    start = held_out(np.zeros_like(baseline.result))
    expected = held_out(baseline.result)

    def row(name: str, run: Timed, compile_seconds: float, bar: float | None) -> Row:
        end = held_out(run.result.delta[: len(few)])
        # Both sides draw their own noise, so the losses agree only within that noise.
        check = Check("held-out loss at the end, emcid_jax / released", end / expected, high=1.1)
        details = {
            "held-out loss before": start,
            "held-out loss after, emcid_jax": end,
            "held-out loss after, released": expected,
            "concepts of the held-out losses": len(few),
            "concepts together, emcid_jax": settings.concepts,
            "seconds to compile, once": compile_seconds,
        }
        each = baseline.seconds / len(few), run.seconds / settings.concepts
        return Row(name, "s per concept", *each, bar, (check,), details)

    name = f"Stage I, {settings.steps} steps"
    return [
        row(name, batch, seconds, 5.0),
        row(f"{name}, all tokens, no pool", batch_plain, seconds_plain, None),
    ]


def _held_out(
    pipeline: Pipeline, inputs: StageOneInputs, offsets: np.ndarray, config: StageOneConfig
) -> float:
    """Our held-out loss of the released procedure's offsets: one measure for both."""
    few = jax.tree.map(lambda leaf: leaf[: len(offsets)], inputs)

    @jax.jit
    def loss(params: Params, inputs: StageOneInputs, delta: Array) -> Array:
        return adam_loop.held_out_loss(pipeline, params, inputs, delta, config).total.mean()

    return float(loss(stage_one.model_params(pipeline, config), few, offsets))
