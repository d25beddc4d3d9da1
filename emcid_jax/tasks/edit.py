"""The main job: requests in, edited text encoder, figures and report out; resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EditConfig, EvaluationConfig, ExportDtype, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank.concepts import Concept, ConceptBank
from emcid_jax.editing.bank.memories import Record, hash_of, model_hashes
from emcid_jax.editing.debias import mixing as debias
from emcid_jax.editing.debias.mixing import Factors
from emcid_jax.editing.export import edit_file, text_encoder
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.evaluation.benchmarks.aice import evaluate, make_plan
from emcid_jax.evaluation.benchmarks.registry import evaluate_others, split
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.judges.classifier import Judge, load_judge
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, with_text_params
from emcid_jax.runtime import checksums, parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import debias_search, environment, write_report
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.find_measured import Measured, find_measured
from emcid_jax.workflow.find_memories import Prompts, find_memories, read_prompts
from emcid_jax.workflow.find_moments import find_captions
from emcid_jax.workflow.inputs import read_requests, require_layers
from emcid_jax.workflow.open_model import open_model, read_text_params

Config = EditConfig
WRITES = (
    "config.json",
    "metrics.jsonl",
    "metrics.json",
    "debias.json",
    "edit.safetensors",
    "text_encoder",
    "report.html",
    "bank",
    "moments",
    "evaluation",
    "images",
)
"""What the task writes in its workdir."""


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
    def parts(self) -> list[tuple[EditRequest, ...]]:
        """Per request, those of one destination that Stage I runs for; `prompts` are theirs."""
        return [debias.parts(request) for request in self.requests]

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
        held_out = hashlib.sha256(Path(held).read_bytes()).hexdigest() if held else ""
        judge = self.judge.fingerprint if self.judge is not None else ""
        return [about, self.inputs, memories, judge, held_out]

    @property
    def concepts(self) -> list[Concept]:
        """What the requests are in the bank."""
        about = [bank.provenance(r, self.config.stage_one, self.model) for r in self.requests]
        return [Concept(r, bank.key(a)) for r, a in zip(self.requests, about, strict=True)]

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


def run(config: EditConfig, workdir: Path) -> None:
    """Edits, exports, evaluates and reports into `workdir`; goes on where an earlier run stopped.

    UserError, before anything is written, if settings, requests, model or workdir are unfit.
    """
    if config.run.compile_cache:
        environment.use_compile_cache()
    began = time.perf_counter()
    folders.require_writable(workdir, WRITES, config)
    job = prepare(config)
    with folders.exclusive(workdir, WRITES):
        folders.require_same(workdir, dataclasses.asdict(config), job.inputs)
        folders.write_config(workdir, config, job.inputs, environment.describe())
        log = folders.Log(workdir / "metrics.jsonl")
        log.write("prepare", time.perf_counter() - began)
        if not all((workdir / name).exists() for name in ("text_encoder", "edit.safetensors")):
            edit(job, workdir, log)
        edited = with_text_params(job.pipeline, _read_edited(job.pipeline, workdir))
        finish(job, edited, workdir, log)


def prepare(config: EditConfig) -> Job:
    """Reads and checks all input. UserError lists what is wrong; touches nothing."""
    stage_two_config = preservation.resolved(config.stage_two)
    config = dataclasses.replace(config, stage_two=stage_two_config)
    requests = read_requests(config.requests)
    captions = find_captions(config.moments)
    pipeline = open_model(config.model)
    require_layers(config.stage_two, pipeline)
    parts = [part for request in requests for part in debias.parts(request)]
    prompts = read_prompts(pipeline, parts, config.stage_one)
    mixed = [request for request in requests if request.task == "debias"]
    if mixed and config.stage_one.edited_tokens > 1:
        raise UserError(
            f"config.stage_one.edited_tokens is {config.stage_one.edited_tokens}, but "
            f"{mixed[0].origin} is a 'debias' request, whose search adds its offset to one token; "
            "set it to 1, or edit the others alone"
        )
    judge = None
    if config.evaluation.enabled or mixed:
        judge = _load_judge(config.evaluation, pipeline.folder)
        debias_search.require_judgeable(mixed, judge, config.debias)
    if judge and config.evaluation.enabled:
        scored = split(requests, judge.groups).aice
        for reason in make_plan(scored, judge.groups[OBJECT], config.evaluation).skipped:
            logging.warning("not evaluated: %s", reason)
    job = Job(config, requests, pipeline, prompts, captions, model_hashes(pipeline), judge)
    concept_bank.united(job.concepts)
    return job


def edit(job: Job, workdir: Path, log: folders.Log) -> None:
    """Both stages and the exports; edit.safetensors appears last, when all is done."""
    config, pipeline = job.config, job.pipeline
    text_encoder.require_replaceable(workdir / "text_encoder")
    concept_bank.require_puttable(workdir / "bank", job.concepts)
    singles = [part for parts in job.parts for part in parts]
    found = iter(
        find_memories(
            pipeline,
            singles,
            job.prompts,
            config.stage_one,
            config.run,
            job.model,
            workdir / "bank",
            log,
        )
    )
    memories = [[next(found) for _ in parts] for parts in job.parts]
    moments = find_measured(
        pipeline,
        job.captions,
        config.stage_two,
        config.stage_two.layers,
        config.moments,
        config.run,
        workdir / "moments",
        log,
    )
    factors = _mix(job, memories, moments, workdir, log)
    records = _records(job, memories, factors)
    for request, record in zip(job.requests, records, strict=True):
        if request.task == "debias":
            bank.write(workdir / "bank", record.provenance, record.memory, record.details)
    concepts = concept_bank.of_requests(job.requests, records)
    concept_bank.put(workdir / "bank", concepts.concepts)
    dtype = config.model.export_dtype
    write_results(concepts, pipeline, job.model, moments, config.stage_two, dtype, workdir, log)


def solve(job: Job, memories: Sequence[bank.Memory], moments: Measured) -> WeightEdit:
    """Stage II of the job, which has no `debias` request, from the pristine text encoder."""
    records = _records(job, [[memory] for memory in memories], {})
    concepts = concept_bank.of_requests(job.requests, records)
    return concept_bank.solve(concepts, job.pipeline, moments, job.config.stage_two)


def write_results(
    concepts: ConceptBank,
    pipeline: Pipeline,
    model: Mapping[str, str],
    moments: Measured,
    config: StageTwoConfig,
    export_dtype: ExportDtype,
    workdir: Path,
    log: folders.Log,
) -> StageTwoReport:
    """Stage II and the exports; edit.safetensors appears last, when all is done.

    Args:
        concepts: what is written.
        pipeline: the base model.
        model: its hashes, see `memories.model_hashes`.
        moments: its second moments.
        config: Stage II's settings.
        export_dtype: stored type of the text encoder; `source` keeps every tensor's.
        workdir: gets `text_encoder/` and `edit.safetensors`.
        log: gets a line per step.
    """
    with log.timed("stage_two") as figures:
        solved = concept_bank.solve(concepts, pipeline, moments, config)
        report = solved.report
        figures["distance"] = [report.distance_before, report.distance_after]
    with log.timed("export"):
        content = edit_file.pack(solved.deltas, solved.units)
        # What is in the file is what is exported.
        stored = WeightEdit(content.deltas(), report, content.units())
        edited = stage_two.apply_edit(pipeline.params["text_encoder"], stored)
        text_encoder.write_text_encoder(
            workdir / "text_encoder",
            edited,
            pipeline.folder / "text_encoder",
            export_dtype,
            pipeline.variant,
        )
        ledger = edit_file.make_ledger(
            concepts, model, moments, config, report, params_hash(edited)
        )
        edit_file.write_edit(workdir / "edit.safetensors", content, ledger)
    return report


def finish(job: Job, edited: Pipeline, workdir: Path, log: folders.Log) -> None:
    """Evaluation, metrics.json and report.html."""
    config = job.config
    evaluation, others = None, {}
    if job.judge is not None and config.evaluation.enabled:
        models = Models(job.pipeline, edited, job.judge, hash_of(job.model), parallel.make_mesh())
        scored = split(job.requests, job.judge.groups)
        with log.timed("evaluation"):
            evaluation = evaluate(
                scored.aice,
                models.base,
                models.edited,
                models.judge,
                config.evaluation,
                workdir,
                base_hash=models.base_hash,
                mesh=models.mesh,
                progress=config.run.progress,
            )
            others = evaluate_others(
                scored, models, config.evaluation, workdir, progress=config.run.progress
            )
    mixing = workdir / debias_search.FILE
    if mixing.exists():
        others["debias_search"] = checksums.read_json(mixing, "delete it", older=True)["found"]
    _, ledger = edit_file.read_ledger(workdir / "edit.safetensors")
    with log.timed("report"):
        memories = [
            bank.provenance(part, config.stage_one, job.model)
            for parts in job.parts
            for part in parts
        ]
        count = len(job.requests)
        write_report.write_page(workdir, config, count, memories, ledger["report"], evaluation, log)
    write_report.write_metrics(workdir, count, ledger["report"], evaluation, others, log)


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


def _mix(
    job: Job,
    memories: Sequence[Sequence[bank.Memory]],
    moments: Measured,
    workdir: Path,
    log: folders.Log,
) -> dict[int, Factors]:
    """The factors of every `debias` request, by its place in the job."""
    config, places = job.config, [i for i, one in enumerate(memories) if len(one) > 1]
    if not places:
        return {}
    assert job.judge is not None

    def solved(factors: Sequence[Factors]) -> Pipeline:
        records = _records(job, memories, dict(zip(places, factors, strict=True)))
        concepts = concept_bank.of_requests(job.requests, records)
        edit = concept_bank.solve(concepts, job.pipeline, moments, config.stage_two)
        return stage_two.with_edit(job.pipeline, edit)

    search = debias_search.Search(
        [job.requests[i] for i in places],
        [memories[i] for i in places],
        job.pipeline,
        job.judge,
        config.debias,
        config.stage_one.layer,
        parallel.make_mesh(),
        config.run.progress,
    )
    found = debias_search.find_mixtures(search, solved, workdir, log)
    return dict(zip(places, found.factors, strict=True))


def _records(
    job: Job, memories: Sequence[Sequence[bank.Memory]], factors: Mapping[int, Factors]
) -> list[Record]:
    """One record per request; the memories of `debias` requests mixed by their factors."""
    records = []
    for place, (request, found) in enumerate(zip(job.requests, memories, strict=True)):
        about, memory = bank.provenance(request, job.config.stage_one, job.model), found[0]
        if place in factors:
            about["factors"] = list(factors[place])
            memory = debias.mixed(found, factors[place])
        records.append(Record(about, memory, {}))
    return records


def _read_edited(pipeline: Pipeline, workdir: Path) -> dict[str, Any]:
    """The text encoder as it was exported: what is measured is what the user gets."""
    return read_text_params(pipeline, workdir / "text_encoder")
