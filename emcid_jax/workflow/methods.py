"""Who edits in a comparison: EMCID, UCE or fine-tuning, each from a checked job to a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from emcid_jax.baselines import fine_tune, uce
from emcid_jax.baselines.fine_tune import FineTuneConfig
from emcid_jax.baselines.uce import UceConfig
from emcid_jax.editing.bank.memories import hash_of
from emcid_jax.editing.stage_one.loss import StageOneInputs
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.runtime.peak_memory import Peak
from emcid_jax.workflow import edit_job, find_memories, inputs
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.workdir import Log, Run

Method = Literal["emcid", "uce", "fine-tune"]
CHUNK = 16
"""Requests whose training images are drawn together."""


class Spent(NamedTuple):
    """Seconds of an edit itself, memories included as if none had been there, no second moments."""

    seconds: float
    processor: float
    """Of all cores of the host: what a busy machine does not change."""

    def plus(self, other: Spent, times: float = 1.0) -> Spent:
        """This and `times` the other."""
        return Spent(*(a + times * b for a, b in zip(self, other, strict=True)))


class Edited(NamedTuple):
    """An edited model and what it cost."""

    pipeline: Pipeline
    spent: Spent
    mebibytes: float | None
    """Peak memory while it was written."""
    about: dict[str, Any]
    """What the method says of its own work."""


def emcid(job: Job, count: int, keep: Sequence[str], run: Run) -> Edited:
    """The first `count` requests of `job` by Stage I and II; memories of all are found at once.

    With names to keep, `ridge` becomes `ridge+preserve`.
    """
    read, each = found(job, run)
    first = job.first(count)
    if keep:
        layers = first.config.stage_two
        solver = "ridge+preserve" if layers.solver == "ridge" else layers.solver
        layers = dataclasses.replace(layers, solver=solver, preserve=(*layers.preserve, *keep))
        config = dataclasses.replace(first.config, stage_two=layers)
        first = dataclasses.replace(first, config=config)
    peak, clock = Peak(), _Clock()
    solved = edit_job.solve(first, read.memories[:count], read.moments)
    edited = stage_two.with_edit(job.pipeline, solved)
    writing = clock.spent()
    reports = {name: one.report for name, one in solved.items()}
    return Edited(
        edited,
        writing.plus(each, float(count)),
        peak.mebibytes(),
        {
            "stage_one_each": each._asdict(),
            "stage_two": writing._asdict(),
            "reached": list(edit_job.distance(reports)),
        },
    )


class _Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def spent(self) -> Spent:
        seconds, processor = self._began
        return Spent(time.perf_counter() - seconds, time.process_time() - processor)


def found(job: Job, run: Run) -> tuple[edit_job.Found, Spent]:
    """What Stage II reads, and what a memory costs on average, compilation included.

    The costs of earlier runs are in a log of their own per settings of Stage I.
    """
    key = hash_of([job.inputs, dataclasses.asdict(job.config.stage_one)])[:8]
    log = Log(run.workdir / f"stage_one-{key}.jsonl")
    run = dataclasses.replace(run, log=log)
    edit_job.find_moments_of(job, run)
    before, clock = len(list(log.records())), _Clock()
    read = edit_job.find(job, run)
    new = list(log.records())[before:]
    chunk = parallel.even_chunk(len(job.requests), run.config.save_every)
    if new:
        milliseconds = parallel.total(round(1000 * clock.spent().processor))  # Of all hosts.
        log.write("processor", milliseconds / 1000, found=chunk * len(new))
    spent, known = log.seconds(), list(log.records())
    every = max((one.get("concepts", 1) for one in known), default=1)
    timed = sum(one.get("found", 0) for one in known) or 1
    each = spent.get("stage_one", 0.0) / every, spent.get("processor", 0.0) / timed
    return read, Spent(*each)


def by_uce(job: Job, count: int, keep: Sequence[str], config: UceConfig) -> Edited:
    """The first `count` requests of `job` by UCE's closed form."""
    peak, clock = Peak(), _Clock()
    found = uce.solve(job.pipeline, job.requests[:count], [*names_of(config), *keep], config)
    unet = uce.apply_edit(job.pipeline.params["unet"], found)
    spent = clock.spent()
    params = job.pipeline.params | {"unet": unet}
    edited = dataclasses.replace(job.pipeline, params=params)
    return Edited(edited, spent, peak.mebibytes(), {"condition": found.condition})


def names_of(config: UceConfig) -> list[str]:
    """The names that UCE shall keep, those of its file included. UserError if it is unreadable."""
    return inputs.names_to_keep(config.preserve, config.preserve_path, "config.uce.preserve_path")


def fine_tuned(job: Job, count: int, config: FineTuneConfig, run: Run) -> Edited:
    """The first `count` requests of `job` by Adam on weights, with Stage I's loss."""
    peak, clock = Peak(), _Clock()
    training = _training_inputs(job.first(count), run)
    total = sum(1 for _ in fine_tune.batches(count, config))
    losses: list[float] = []
    params = job.pipeline.params
    steps = fine_tune.train(job.pipeline, training, job.config.stage_one, config)
    for progress in tqdm(steps, "Fine-tuning", total, disable=not run.config.progress):
        params = progress.params
        losses.append(progress.loss)
    spent, tenth = clock.spent(), max(1, total // 10)
    ends = [float(np.mean(part)) for part in (losses[:tenth], losses[-tenth:])]
    edited = dataclasses.replace(job.pipeline, params=params)
    return Edited(edited, spent, peak.mebibytes(), {"loss": ends})


def _training_inputs(job: Job, run: Run) -> StageOneInputs:
    """What Stage I would read, of all requests."""
    count = len(job.requests)
    chunks = [
        find_memories.prepare_chunk(
            job.pipeline,
            job.requests,
            job.prompts,
            slice(first, min(first + CHUNK, count)),
            job.config.stage_one,
            run.mesh,
        )
        for first in range(0, count, CHUNK)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
