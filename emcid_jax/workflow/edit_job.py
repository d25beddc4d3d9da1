"""The job of an edit: requests, model and settings, all checked, and each of its steps."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.config import EditConfig, EvaluationConfig
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import Concept
from emcid_jax.editing.bank.memories import Memory, Record, hash_of, model_hashes
from emcid_jax.editing.debias import mixing
from emcid_jax.editing.debias.mixing import Factors
from emcid_jax.editing.encoder.sites import Site, sites
from emcid_jax.editing.stage_one.loss import needs_images
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.evaluation.benchmarks.aice.protocol import AiceResult
from emcid_jax.evaluation.benchmarks.aice.run import evaluate, make_plan
from emcid_jax.evaluation.benchmarks.registry import AICE, split
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.judges.classifier import Judge, load_judge
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import file_hash
from emcid_jax.workflow import debias_search
from emcid_jax.workflow.find_memories import Prompts, find_memories, read_prompts
from emcid_jax.workflow.find_moments import (
    Layers,
    Measured,
    find_captions,
    find_measured,
    moments_folder,
)
from emcid_jax.workflow.inputs import read_requests, require_blocks
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.workdir import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A checked job: everything that can be wrong with the user's input has been looked at."""

    config: EditConfig
    requests: list[EditRequest]
    pipeline: Pipeline
    prompts: Prompts
    captions: list[str]
    model: dict[str, str]
    """Hash of every part of the base model."""
    judge: Judge | None
    """None if nothing is judged: neither an evaluation nor the shares of a `debias` request."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the job's memories are found."""
        return sites(self.config.stage_one, self.pipeline.texts)

    @property
    def parts(self) -> list[tuple[EditRequest, ...]]:
        """Per request, those of one destination that Stage I runs for; `prompts` are theirs."""
        return [mixing.parts(request) for request in self.requests]

    @property
    def decides(self) -> list[Any]:
        """All that the job's edit and what is measured of it depend on, files by their content."""
        about = dataclasses.asdict(self.config)
        judging = self.judge is not None and self.config.evaluation.enabled
        # Requests and model count by content: they are in `inputs`.
        for section in ("run", "requests", "model", *(() if judging else ("evaluation",))):
            del about[section]
        memories = [
            bank.key(bank.provenance(part, self.config.stage_one, self.model))
            for parts in self.parts
            for part in parts
        ]
        held = self.config.evaluation.holdout_path if judging else ""
        held_out = file_hash(Path(held)) if held else ""
        judge = self.judge.fingerprint if self.judge is not None else ""
        return [about, self.inputs, memories, judge, held_out]

    @property
    def concepts(self) -> list[Concept]:
        """What the requests are in the bank."""
        about = [bank.provenance(r, self.config.stage_one, self.model) for r in self.requests]
        return [Concept(r, bank.key(a)) for r, a in zip(self.requests, about, strict=True)]

    def first(self, count: int) -> Job:
        """The job of the first `count` requests."""
        prompts = Prompts(
            *(PromptRectangle(*(rows[:count] for rows in part)) for part in self.prompts)
        )
        return dataclasses.replace(self, requests=self.requests[:count], prompts=prompts)

    @property
    def inputs(self) -> dict[str, str]:
        """Hash of what a field names: the same name may mean something else another day."""
        asked = [dataclasses.asdict(request) | {"origin": ""} for request in self.requests]
        kept = self.config.stage_two.preserve
        return {
            "requests.path": hash_of(asked),
            "model.path": hash_of(self.model),
            "moments.captions": hash_of(self.captions),
        } | ({"stage_two.preserve_path": hash_of(kept)} if kept else {})


def prepare(config: EditConfig) -> Job:
    """Reads and checks all input. UserError lists what is wrong; touches nothing."""
    stage_two_config = preservation.resolved(config.stage_two)
    config = dataclasses.replace(config, stage_two=stage_two_config)
    requests = read_requests(config.requests)
    captions = find_captions(config.moments)
    pipeline = open_model(config.model, config.run.weight_shards)
    require_blocks(config, pipeline)
    parts = [part for request in requests for part in mixing.parts(request)]
    prompts = read_prompts(pipeline, parts, config.stage_one)
    mixed = [request for request in requests if request.task == "debias"]
    if mixed and config.stage_one.edited_tokens > 1:
        raise UserError(
            f"config.stage_one.edited_tokens is {config.stage_one.edited_tokens}, but "
            f"{mixed[0].origin} is a 'debias' request, whose search adds its offset to one token; "
            "set it to 1, or edit the others alone"
        )
    judge = None
    if config.evaluation.enabled or mixed or needs_images(config.stage_one):
        make_sampler(pipeline.scheduler_config, 1)  # Refuses now what drawing would refuse later.
    if config.evaluation.enabled or mixed:
        judge = _load_judge(config.evaluation, pipeline.folder)
        debias_search.require_judgeable(mixed, judge, config.debias)
    if judge and config.evaluation.enabled:
        scored = split(requests, judge.groups)[AICE]
        for reason in make_plan(scored, judge.groups[OBJECT], config.evaluation).skipped:
            logging.warning("not evaluated: %s", reason)
    job = Job(config, requests, pipeline, prompts, captions, model_hashes(pipeline), judge)
    concept_bank.united(job.concepts)
    return job


class Found(NamedTuple):
    """What Stage II reads."""

    memories: list[Memory]
    moments: Mapping[str, Measured]
    """By text encoder: second moments of every layer, so that jobs of any layers share them."""


def find(job: Job, run: Run) -> Found:
    """Memories and second moments, from the workdir or found and filed there."""
    return Found(find_memories_of(job, run), find_moments_of(job, run))


def find_memories_of(job: Job, run: Run) -> list[Memory]:
    """The memories of a job without `debias` requests, from the workdir or filed there."""
    return find_memories(
        job.pipeline, job.requests, job.prompts, job.config.stage_one, job.model,
        run.workdir / "bank", run,
    )  # fmt: skip


def find_moments_of(job: Job, run: Run, layers: Layers | None = None) -> dict[str, Measured]:
    """What Stage II reads, moments of `layers` (None: of every one), from the workdir or found and
    filed there."""
    layers = layers or {
        site.encoder: tuple(range(job.pipeline.texts[site.encoder].config.num_hidden_layers))
        for site in job.sites
    }
    folder = moments_folder(run.workdir, job.model, job.captions, layers)
    config = job.config
    return find_measured(
        job.pipeline, job.captions, config.stage_two, layers, config.moments, folder, run
    )


def solve(
    job: Job, memories: Sequence[Memory], moments: Mapping[str, Measured]
) -> dict[str, WeightEdit]:
    """Stage II of the job, which has no `debias` request, from the pristine text encoders."""
    records = records_of(job, [[memory] for memory in memories], {})
    concepts = concept_bank.of_requests(job.requests, records)
    return bank_solve.solve(concepts, job.pipeline, moments, job.config.stage_two)


def written(job: Job, run: Run) -> tuple[Pipeline, dict[str, StageTwoReport]]:
    """The model with the job's requests in it, and how far Stage II came in each encoder."""
    solved = solve(job, *find(job, run))
    reports = {name: one.report for name, one in solved.items()}
    return stage_two.with_edit(job.pipeline, solved), reports


def distance(reports: Mapping[str, StageTwoReport]) -> tuple[float, float]:
    """How far the memories are from their targets before and after, summed over the encoders."""
    before, after = zip(
        *((one.distance_before, one.distance_after) for one in reports.values()), strict=True
    )
    return sum(before), sum(after)


def judged(job: Job, edited: Pipeline, folder: Path, run: Run) -> AiceResult:
    """The benchmark's figures for an edited model; the job has a judge. `folder` gets images."""
    both, config = models(job, edited, run), job.config.evaluation
    return evaluate(job.requests, both, config, folder, progress=run.config.progress).result


def models(job: Job, edited: Pipeline, run: Run) -> Models:
    """The job's model before and after an edit, with the judge, which the job has."""
    assert job.judge is not None
    return Models(job.pipeline, edited, hash_of(job.model), run.mesh, judge=job.judge)


def records_of(
    job: Job, memories: Sequence[Sequence[Memory]], factors: Mapping[int, Factors]
) -> list[Record]:
    """One record per request; the memories of `debias` requests mixed by their factors."""
    records = []
    for place, (request, found) in enumerate(zip(job.requests, memories, strict=True)):
        about, memory = bank.provenance(request, job.config.stage_one, job.model), found[0]
        if place in factors:
            about["factors"] = list(factors[place])
            memory = mixing.mixed(found, factors[place])
        records.append(Record(about, memory, {}))
    return records


def _load_judge(config: EvaluationConfig, model: Path) -> Judge:
    """The classifier that `config.judge` names. UserError if there is none."""
    folder = Path(config.judge) if config.judge else model / "judge"
    if not folder.is_dir():
        raise UserError(
            f"config.evaluation.judge is {config.judge!r}, but {folder} is no folder; give a ViT "
            "classifier's folder or --config.evaluation.enabled=False"
        )
    judge = load_judge(folder)
    if OBJECT not in judge.groups:
        raise UserError(f"config.evaluation.judge: {folder} has no label that is an object")
    return judge
