"""`python -m studies.attention_loss`: memories by the attention loss, judged by the noise loss.

All memories are of the same requests, spread over the mixed list, in the bundled model. They are
judged by the held-out loss of objective `ablate-dest`: the same pictures, noise and timesteps for
all, which no step sees. *Worse* counts requests whose total is above that of the noise loss's
memory. Seconds are of processor time per request, compilation left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.config import RequestsConfig, StageOneConfig
from emcid_jax.editing.stage_one import adam_loop
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, STAGE_ONE, model_folder
from emcid_jax.workflow import find_memories
from emcid_jax.workflow.inputs import read_requests


class Row(NamedTuple):
    """A way to find memories."""

    objective: str
    steps: int
    rate: float
    scale: float
    """Weight of the text loss."""

    def config(self, base: StageOneConfig) -> StageOneConfig:
        """`base` with it."""
        return dataclasses.replace(
            base,
            objective=self.objective,
            steps=self.steps,
            learning_rate=self.rate,
            text_loss_scale=self.scale,
        )


REFERENCE = Row("ablate-dest", 100, STAGE_ONE.learning_rate, STAGE_ONE.text_loss_scale)
ROWS = (
    Row("text-only", 100, 0.5, 0.1),
    Row("attention", 30, 1.0, 0.1),
    Row("attention", 60, 1.0, 0.1),
    Row("attention", 100, 0.5, 0.1),
    Row("attention", 100, 1.0, 0.1),
    Row("attention", 100, 1.0, 0.3),
    Row("attention", 100, 1.0, 1.0),
    Row("attention", 200, 1.0, 1.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per way."""
    options = _parse(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    mesh = parallel.make_mesh(jax.devices()[:1])
    every = read_requests(RequestsConfig(path="sprites"))
    requests = evenly(every[options.skip :], options.count)
    prompts = find_memories.read_prompts(pipeline, requests, STAGE_ONE)
    rows = slice(0, len(requests))

    def prepare(config: StageOneConfig) -> find_memories.StageOneInputs:
        read = find_memories.read_for(pipeline, prompts, config)
        return find_memories.prepare_chunk(pipeline, requests, read, rows, config, mesh)

    judged_by = REFERENCE.config(STAGE_ONE)
    fixed = jax.tree.map(jnp.asarray, prepare(judged_by))

    @jax.jit
    def judge(params: stage_one.Params, delta: jax.Array) -> adam_loop.Losses:
        return adam_loop.held_out_loss(pipeline, params, fixed, delta, judged_by)

    params = stage_one.model_params(pipeline, judged_by)
    print(f"{len(requests)} requests, held-out losses, means:")
    print("objective    steps rate scale   noise    text   total  worse  ratio  seconds")
    best = None
    for row in (REFERENCE, *ROWS):
        config = row.config(STAGE_ONE)
        inputs = prepare(config)
        program = stage_one.compile_program(pipeline, inputs, config, mesh)
        began = time.process_time()
        delta = stage_one.optimise(pipeline, inputs, config, mesh, program).delta
        seconds = (time.process_time() - began) / len(requests)
        found = jax.tree.map(np.asarray, judge(params, jnp.asarray(delta)))
        best = found.total if best is None else best
        worse, ratio = int((found.total > best).sum()), float(np.median(found.total / best))
        print(
            f"{row.objective:<12}{row.steps:>6}{row.rate:>5}{row.scale:>6}"
            f"{found.noise.mean():>8.5f}{found.text.mean():>8.3f}{found.total.mean():>8.4f}"
            f"{worse:>7}{ratio:>7.2f}{seconds:>9.2f}",
            flush=True,
        )
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.attention_loss", description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--skip", type=int, default=0, help="the first requests of the list")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
