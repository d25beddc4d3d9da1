"""`python -m studies.concept_batch`: what a step of Stage I costs per concept, by batch size.

Measures what `run.MAX_SAMPLES` should be on this machine; with `--one-by-one`, what it
costs to keep fewer activations, hence `run.ENOUGH_SAMPLES`. Beside the memory of the compiled
program stands the estimate by which real runs look for their batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import workload
from benchmarks.timing import take_turns
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder

PROMPTS = 3
"""Prompts of a concept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per batch size; the images are noise, which costs what any image does."""
    options = _parse(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    print(f"{'samples':>8}{'concepts':>10}{'s per concept-step':>20}{'MiB':>8}{'estimated':>11}")
    for samples in options.samples:
        batch = ConceptBatch(max(1, samples // PROMPTS), options.one_by_one)
        seconds, memory, estimated = measure(pipeline, batch, options.steps, options.repeats)
        counts = f"{batch.concepts * PROMPTS:>8}{batch.concepts:>10}"
        sizes = f"{memory / 2**20:>8.0f}{estimated / 2**20:>11.0f}"
        print(f"{counts}{seconds:>20.5f}{sizes}", flush=True)
    return 0


def measure(
    pipeline: Pipeline, batch: ConceptBatch, steps: int, repeats: int
) -> tuple[float, int, int]:
    """Seconds per concept and step, bytes the program needs, and what was estimated.

    The difference between a run of `2 * steps` and one of `steps`: what both do once falls out.
    """
    mesh = parallel.make_mesh(jax.devices()[:1])
    edits = workload.edits(pipeline, batch.concepts)
    seeds = [request.seed for request in edits.requests]
    shape = (batch.concepts, 1, PROMPTS, *pipeline.image_size, 3)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    configs = [dataclasses.replace(StageOneConfig(), steps=n) for n in (steps, 2 * steps)]
    tokens = edits.source_tokens, edits.destination_tokens
    inputs = preparation.prepare(pipeline, *tokens, seeds, images, configs[0], mesh)
    programs = [run.compile_program(pipeline, inputs, config, mesh, batch) for config in configs]
    runs = (
        functools.partial(run.optimise, pipeline, inputs, config, mesh, program)
        for config, program in zip(configs, programs, strict=True)
    )
    few, many = take_turns(repeats, *runs)
    seconds = (many.seconds - few.seconds) / steps / batch.concepts
    estimated = run.estimated_memory(pipeline, inputs, configs[1], mesh, batch, 1)
    return seconds, programs[1].bytes_per_device, estimated


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.concept_batch", description=__doc__)
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[24, 48, 96, 192], help="prompts per step"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest counts")
    parser.add_argument("--one-by-one", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
