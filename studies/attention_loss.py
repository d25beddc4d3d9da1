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

import numpy as np

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.sprites.bundled import STAGE_ONE
from studies import held_out


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
    setting = held_out.open_setting(options.count, options.skip)
    pipeline, requests, mesh = setting.pipeline, setting.requests, setting.mesh
    print(f"{len(requests)} requests, held-out losses, means:")
    print("objective    steps rate scale   noise    text   total  worse  ratio  seconds")
    best = None
    for row in (REFERENCE, *ROWS):
        config = row.config(STAGE_ONE)
        inputs = setting.prepare(config)
        program = stage_one.compile_program(pipeline, inputs, config, mesh)
        began = time.process_time()
        delta = stage_one.optimise(pipeline, inputs, config, mesh, program).delta
        seconds = (time.process_time() - began) / len(requests)
        found = setting.losses(delta)
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
