"""AICE's first requests on the bundled model, edited by any solver, drawn and judged.

What `benchmarks.solver_images` and `benchmarks.text_space` share. Memories, second moments and
judgements are kept in a workdir: what is there is not done again, so a killed run goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emcid_jax import config as settings
from emcid_jax import parallel
from emcid_jax.config import EditConfig, StageTwoConfig
from emcid_jax.editing import bank, concept_bank, preservation, stage_two
from emcid_jax.editing.bank import hash_of
from emcid_jax.editing.concept_bank import ConceptBank
from emcid_jax.editing.second_moment import SecondMoments
from emcid_jax.editing.stage_two import WeightEdit
from emcid_jax.evaluation.aice import AicePlan, Scores, plan_requests
from emcid_jax.evaluation.holdout import holdout_from_labels, limited
from emcid_jax.evaluation.images import fingerprint, scored_images
from emcid_jax.evaluation.labels import OBJECT
from emcid_jax.evaluation.sentences import SENTENCES
from emcid_jax.generation import generate
from emcid_jax.models.weights import params_hash
from emcid_jax.pipeline import with_text_params
from emcid_jax.tasks import edit
from emcid_jax.tasks import workdir as folders
from emcid_jax.tasks.memories import find_memories
from emcid_jax.tasks.moments import find_moments

HOLDOUT = 100
"""Hold-out classes, with three images each."""
BATCH = 50
"""Images drawn at once: what a kill loses at most."""


class Edited(NamedTuple):
    """The first requests of the benchmark, and what is drawn of them."""

    job: edit.Job
    concepts: ConceptBank
    moments: SecondMoments
    plan: AicePlan
    workdir: Path


def prepare(requests: str, count: int, workdir: Path) -> Edited:
    """Memories and second moments, found or read; one image per prompt set of a request."""
    config = EditConfig(
        requests=settings.RequestsConfig(path=requests),
        stage_one=settings.StageOneConfig(
            steps=60, image_steps=10, learning_rate=0.5, text_loss_scale=0.1
        ),
        moments=settings.MomentConfig(count=20_000),
        evaluation=settings.EvaluationConfig(steps=10, aliases=False),
    )
    job = edit.prepare(config)
    prompts = type(job.prompts)(
        *(type(part)(*(rows[:count] for rows in part)) for part in job.prompts)
    )
    job = dataclasses.replace(job, requests=job.requests[:count], prompts=prompts)
    log = folders.Log(workdir / "metrics.jsonl")
    run, model = config.run, job.model
    memories = find_memories(
        job.pipeline, job.requests, prompts, config.stage_one, run, model, workdir / "bank", log
    )
    about = [bank.provenance(request, config.stage_one, model) for request in job.requests]
    records = [bank.Record(a, memory, {}) for a, memory in zip(about, memories, strict=True)]
    every = tuple(range(job.pipeline.text.config.num_hidden_layers))
    moments = find_moments(
        job.pipeline, job.captions, every, config.moments, run, workdir / "moments", log
    )
    concepts = concept_bank.of_requests(job.requests, records)
    return Edited(job, concepts, moments, _plan(job), workdir)


def _plan(job: edit.Job) -> AicePlan:
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
    """Every other hold-out class: what protecting solvers are told; the others show the price."""
    return tuple(one.name for one in plan.holdout[::2])


def solve(run: Edited, config: StageTwoConfig) -> WeightEdit:
    """Stage II of all requests."""
    solved = preservation.resolved(config)
    return concept_bank.solve(run.concepts, run.job.pipeline, run.moments, solved)


def scores(run: Edited, solved: WeightEdit | None) -> Scores:
    """The judge's word on every image of the plan; None: of the clean model."""
    job = run.job
    assert job.judge is not None
    judge, steps, pipeline = job.judge, job.config.evaluation.steps, job.pipeline
    guidance = job.config.evaluation.guidance
    depends_on = fingerprint(hash_of(job.model), judge.fingerprint, steps, guidance)
    if solved is not None:
        edited = stage_two.apply_edit(pipeline.params["text_encoder"], solved)
        pipeline = with_text_params(pipeline, edited)
        depends_on = fingerprint(depends_on, params_hash(edited))
    mesh = parallel.make_mesh()

    def draw(prompts: list[str], seeds: list[int]) -> np.ndarray:
        missing = BATCH - len(prompts)
        images = generate(
            pipeline,
            prompts + prompts[-1:] * missing,
            seeds + seeds[-1:] * missing,
            steps=steps,
            guidance=guidance,
            batch=BATCH,
            mesh=mesh,
        )
        return images[: len(prompts)]

    def classify(images: np.ndarray) -> np.ndarray:
        return judge.classify(images, batch=BATCH)[OBJECT]

    folder = run.workdir / "judged"
    return scored_images(run.plan.draws(), draw, classify, BATCH, folder, depends_on)
