"""A trace of some chunks of Stage I, which xprof and TensorBoard open: where the time goes.

Stage I's Adam steps are one compiled loop, which the host cannot cut. So a step is a chunk here:
its training images, the loop, and the memories on the disk.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import replacing_folder

FOLDER = "profile"
"""Where in a workdir the trace lies, in the layout that xprof reads."""
STEPS = 5
"""So many are traced."""


def require_steps(first: int, steps: int) -> None:
    """UserError if a job of `steps` chunks has none from `first` on (0: nothing is asked for)."""
    if first and first >= steps:
        raise UserError(
            f"config.run.profile is {first}, but Stage I has {steps} chunks, counted from 0; give "
            "at most the last one, or smaller chunks (config.run.save_every)"
        )


@contextlib.contextmanager
def profiled(first: int, folder: Path) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """Gives the block that every step is to be in, made from its number.

    Steps `first` to `first + 5` (or to the last) are traced into `folder`, which appears whole. A
    trace that is there already stays.

    Args:
        first: step that the trace begins with; 0: nothing is traced.
        folder: where it goes.
    """
    wanted = first > 0 and not folder.exists()
    with contextlib.ExitStack() as trace:

        @contextlib.contextmanager
        def step(number: int) -> Iterator[None]:
            if wanted and number == first:
                trace.enter_context(_traced(folder))
            with jax.profiler.StepTraceAnnotation("chunk", step_num=number):
                yield
            if number + 1 == first + STEPS:
                trace.close()

        yield step
    if wanted and not folder.exists():
        logging.warning(
            "config.run.profile is %d, but fewer chunks were left to do: nothing was traced", first
        )


@contextlib.contextmanager
def _traced(folder: Path) -> Iterator[None]:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Every call of a Python function: a thousand times the rest.
    with replacing_folder(folder) as new, jax.profiler.trace(str(new), profiler_options=options):
        yield
