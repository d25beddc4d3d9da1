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
from emcid_jax.sprites.bundled import ATTENTION_STAGE_ONE, STAGE_ONE


def measure(pipeline: Pipeline, pipe: Any, settings: Settings) -> list[Row]:
    """From training images to memories, equal steps; both sides get the same images.

    Three rows of ours: with the settings of the bundled model's configs, without its `text_tokens`
    and `teacher_pool`, and by the attention loss, which needs no images. All include what is
    computed once per concept and the held-out losses; compile time is apart. All are judged by the
    held-out noise and text loss.
    """
    config = dataclasses.replace(
        STAGE_ONE,
        steps=settings.steps,
        concept_batch=settings.concepts,
        image_steps=settings.sampler_steps,
    )
    plain = dataclasses.replace(config, text_tokens=0, teacher_pool=0)
    asked = dataclasses.replace(
        ATTENTION_STAGE_ONE, steps=settings.steps, concept_batch=settings.concepts
    )
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
    ours_asked, seconds_asked = compiled(asked)
    baseline, batch, batch_plain, batch_asked = take_turns(
        settings.repeats, theirs, ours, ours_plain, ours_asked
    )
    held_out = functools.partial(_held_out, pipeline, prepare(plain), config=plain)
    start = held_out(np.zeros_like(baseline.result))
    expected = held_out(baseline.result)

    def row(name: str, run: Timed, compile_seconds: float, bar: float | None) -> Row:
        each_end = held_out(run.result.delta[: len(few)])
        end = float(each_end.mean())
        # Both sides draw their own noise, so the losses agree only within that noise.
        check = Check(
            "held-out loss at the end, emcid_jax / released", end / float(expected.mean()), high=1.1
        )
        worst = Check("the same, worst concept", float((each_end / expected).max()), high=1.5)
        details = {
            "held-out loss before": float(start.mean()),
            "held-out loss after, emcid_jax": end,
            "held-out loss after, released": float(expected.mean()),
            "concepts with a higher loss than released": int((each_end > expected).sum()),
            "concepts of the held-out losses": len(few),
            "concepts together, emcid_jax": settings.concepts,
            "seconds to compile, once": compile_seconds,
        }
        each = baseline.seconds / len(few), run.seconds / settings.concepts
        return Row(name, "s per concept", *each, bar, (check, worst), details)

    name = f"Stage I, {settings.steps} steps"
    return [
        row(name, batch, seconds, 5.0),
        row(f"{name}, all tokens, no pool", batch_plain, seconds_plain, None),
        row(f"{name}, attention loss", batch_asked, seconds_asked, 10.0),
    ]


def _held_out(
    pipeline: Pipeline, inputs: StageOneInputs, offsets: np.ndarray, config: StageOneConfig
) -> np.ndarray:
    """Our held-out loss of offsets, per concept: one measure for both."""
    few = jax.tree.map(lambda leaf: leaf[: len(offsets)], inputs)

    @jax.jit
    def loss(params: Params, inputs: StageOneInputs, delta: Array) -> Array:
        return adam_loop.held_out_loss(pipeline, params, inputs, delta, config).total

    return np.asarray(loss(stage_one.model_params(pipeline, config), few, offsets))
