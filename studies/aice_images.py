"""AICE's first requests on the bundled model, edited by any solver, drawn and judged.

What `studies.solver_images` and `studies.text_space` share. Memories, second moments and
judgements are kept in a workdir: what is there is not done again, so a killed run goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from emcid_jax import config as settings
from emcid_jax.config import EditConfig, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.bank.memories import hash_of
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.evaluation.benchmarks.aice.holdout import holdout_from_labels, limited
from emcid_jax.evaluation.benchmarks.aice.protocol import AicePlan, Scores, plan_requests
from emcid_jax.evaluation.drawing.batches import drawing, edited_fingerprint, judging
from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import STAGE_ONE
from emcid_jax.storage.hashing import fingerprint
from emcid_jax.workflow import edit_job, environment
from emcid_jax.workflow.find_moments import moments_of
from emcid_jax.workflow.workdir import Log, Run

HOLDOUT = 100
"""Hold-out classes, with three images each."""
BATCH = 50
"""Images drawn at once: what a kill loses at most."""


class Edited(NamedTuple):
    """The first requests of the benchmark, and what is drawn of them."""

    job: edit_job.Job
    concepts: ConceptBank
    moments: SecondMoments
    plan: AicePlan
    workdir: Path


def start() -> None:
    """A device per core and the cache of compiled programs; comes before JAX's first use."""
    parallel.use_cpu_devices(0)
    environment.use_compile_cache()


def prepare(requests: str, count: int, workdir: Path) -> Edited:
    """Memories and second moments, found or read; one image per prompt set of a request."""
    config = EditConfig(
        requests=settings.RequestsConfig(path=requests),
        stage_one=dataclasses.replace(STAGE_ONE, steps=60, image_steps=10),
        moments=settings.MomentConfig(count=20_000),
        evaluation=settings.EvaluationConfig(steps=10, aliases=False),
    )
    job = edit_job.prepare(config).first(count)
    run = Run(config.run, workdir, Log(workdir / "metrics.jsonl"), parallel.make_mesh())
    memories, moments = edit_job.find(job, run)
    about = [bank.provenance(request, config.stage_one, job.model) for request in job.requests]
    records = [bank.Record(a, memory, {}) for a, memory in zip(about, memories, strict=True)]
    concepts = concept_bank.of_requests(job.requests, records)
    return Edited(job, concepts, moments_of(moments[FIRST]), _plan(job), workdir)


def _plan(job: edit_job.Job) -> AicePlan:
    assert job.judge is not None
    labels = job.judge.groups[OBJECT]
    scored, skipped = plan_requests(
        job.requests, labels, SENTENCES, prompts_per_request=1, aliases=False
    )
    named = (labels.find(request.source) for request in job.requests)
    sources = {one.source_id for one in scored} | {i for i in named if i is not None}
    held = limited(holdout_from_labels(labels, sources, SENTENCES), classes=HOLDOUT)
    return AicePlan(scored, held, skipped)


def kept_names(plan: AicePlan) -> tuple[str, ...]:
    """Every other hold-out class: those that are protected; the others show the cost."""
    return tuple(one.name for one in plan.holdout[::2])


def solve(run: Edited, config: StageTwoConfig) -> WeightEdit:
    """Stage II of all requests."""
    solved = preservation.resolved(config)
    pipeline = run.job.pipeline
    return bank_solve.solve(run.concepts, pipeline, {FIRST: run.moments}, solved)[FIRST]


def scores(run: Edited, solved: WeightEdit | None) -> Scores:
    """The judge's word on every image of the plan; None: of the clean model."""
    job = run.job
    assert job.judge is not None
    judge, config, edited = job.judge, job.config.evaluation, job.pipeline
    depends_on = fingerprint(hash_of(job.model), judge.fingerprint, config.steps, config.guidance)
    if solved is not None:
        edited = stage_two.with_edit(job.pipeline, {FIRST: solved})
        depends_on = edited_fingerprint(depends_on, job.pipeline, edited)
    draw = drawing(edited, config, BATCH, parallel.make_mesh())
    read = judging(judge, [OBJECT], BATCH)
    return scored_images(run.plan.draws(), draw, read, BATCH, run.workdir / "judged", depends_on)
