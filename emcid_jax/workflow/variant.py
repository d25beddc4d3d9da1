"""One setting of a job tried: written and judged. All trials share memories and moments."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from emcid_jax.editing.bank.memories import Memory, hash_of
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import StageTwoReport
from emcid_jax.evaluation.benchmarks.aice import evaluate
from emcid_jax.evaluation.benchmarks.aice_protocol import AiceResult
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.workflow import edit_job
from emcid_jax.workflow.find_memories import find_memories
from emcid_jax.workflow.find_moments import Measured, find_measured, moments_folder
from emcid_jax.workflow.workdir import Log


class Found(NamedTuple):
    """What Stage II reads."""

    memories: list[Memory]
    moments: Measured
    """Second moments of every layer, so that trials of any layers share them."""


def first(job: edit_job.Job, count: int) -> edit_job.Job:
    """The job of the first `count` requests."""
    prompts = type(job.prompts)(
        *(type(part)(*(rows[:count] for rows in part)) for part in job.prompts)
    )
    return dataclasses.replace(job, requests=job.requests[:count], prompts=prompts)


def find(job: edit_job.Job, workdir: Path, log: Log) -> Found:
    """Memories and second moments, from `workdir` or found and filed there."""
    config, pipeline = job.config, job.pipeline
    memories = find_memories(
        pipeline, job.requests, job.prompts, config.stage_one, config.run, job.model,
        workdir / "bank", log,
    )  # fmt: skip
    return Found(memories, find_moments_of(job, workdir, log))


def find_moments_of(job: edit_job.Job, workdir: Path, log: Log) -> Measured:
    """What Stage II reads, moments of every layer, from `workdir` or found and filed there."""
    every = tuple(range(job.pipeline.text.config.num_hidden_layers))
    config = job.config
    folder = moments_folder(workdir, job.model, job.captions, every)
    return find_measured(
        job.pipeline, job.captions, config.stage_two, every, config.moments, config.run, folder, log
    )


def written(job: edit_job.Job, workdir: Path, log: Log) -> tuple[Pipeline, StageTwoReport]:
    """The model with the job's requests in it, and how far Stage II came."""
    solved = edit_job.solve(job, *find(job, workdir, log))
    return stage_two.with_edit(job.pipeline, solved), solved.report


def judged(job: edit_job.Job, edited: Pipeline, workdir: Path) -> AiceResult:
    """The benchmark's figures for an edited model; the job has a judge."""
    assert job.judge is not None
    return evaluate(
        job.requests,
        job.pipeline,
        edited,
        job.judge,
        job.config.evaluation,
        workdir,
        base_hash=hash_of(job.model),
        mesh=parallel.make_mesh(),
        progress=job.config.run.progress,
    ).result
