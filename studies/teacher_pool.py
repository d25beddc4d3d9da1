"""`python -m studies.teacher_pool`: new samples in every step against fixed pools of them.

Both take the same number of steps and are judged by the same held-out loss, on the bundled model
and the requests of the quickstart. Compile time is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.timing import timed
from emcid_jax.concepts import spans
from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.concepts.templates import fill
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one import training_images
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder

REQUESTS = Path(__file__).parents[1] / "configs" / "quickstart.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per pool size; 0 stands for new samples in every step."""
    options = _parse(arguments)
    config = StageOneConfig(steps=options.steps, image_steps=10)
    pipeline = load_pipeline(model_folder(BUNDLED))
    mesh = parallel.make_mesh(jax.devices()[:1])
    requests = read_requests(REQUESTS)[: options.count]
    seeds = [request.seed for request in requests]
    destinations = [
        [fill(template, request.dests[0]).prompt for template in request.templates]
        for request in requests
    ]
    images = training_images.draw(pipeline, destinations, seeds, config)
    tokens = (
        spans.source_prompts(pipeline.encoder.tokenizer, requests),
        spans.destination_prompts(pipeline.encoder.tokenizer, requests),
    )
    inputs = preparation.prepare(pipeline, *tokens, seeds, images, config, mesh)

    print(f"{len(requests)} concepts, {config.steps} steps, held-out loss:")
    print(f"{'pool':>5}{'start':>12}{'end':>12}{'end, noise':>12}{'seconds':>10}")
    for pool in options.pools:
        pooled = dataclasses.replace(config, teacher_pool=pool)
        program = stage_one.compile_program(pipeline, inputs, pooled, mesh)
        run = functools.partial(stage_one.optimise, pipeline, inputs, pooled, mesh, program)
        seconds, result = timed(run)
        figures = (result.start.total, result.end.total, result.end.noise)
        losses = "".join(f"{part.mean():>12.5f}" for part in figures)
        print(f"{pool:>5}{losses}{seconds:>10.1f}", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.teacher_pool", description=__doc__)
    parser.add_argument("--pools", type=int, nargs="+", default=[0, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--count", type=int, default=25, help="the first requests")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
