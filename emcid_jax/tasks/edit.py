"""The main job: requests in, edited text encoder, figures and report out; resumable."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.debias.mixing import Factors
from emcid_jax.editing.export import edit_file, text_encoder
from emcid_jax.editing.export.edit_file import ledger_of
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.units.room import require_room
from emcid_jax.evaluation.benchmarks import other_forms
from emcid_jax.evaluation.benchmarks.aice.protocol import as_json
from emcid_jax.evaluation.benchmarks.aice.run import Evaluation, evaluate
from emcid_jax.evaluation.benchmarks.other_forms import FormRecall
from emcid_jax.evaluation.benchmarks.registry import AICE, evaluate_others, split
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.pipeline import Pipeline, with_text_params
from emcid_jax.reporting.pages.edit import FoundMemory, ReportData, Written, write_report
from emcid_jax.reporting.pages.units import WrittenUnits
from emcid_jax.reporting.plots.theme import LayerBar
from emcid_jax.storage import checksums
from emcid_jax.workflow import debias_search, edit_job, environment
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job, prepare, records_of
from emcid_jax.workflow.find_memories import find_memories
from emcid_jax.workflow.find_moments import Measured, edited_layers, find_measured
from emcid_jax.workflow.open_model import read_text_params
from emcid_jax.workflow.workdir import Run, running
from emcid_jax.workflow.write_edit import write_edit

Config = EditConfig
WRITES = (
    "config.json",
    "metrics.jsonl",
    "metrics.json",
    "debias.json",
    "edit.safetensors",
    "text_encoder",
    "text_encoder_2",
    "report.html",
    "bank",
    "moments",
    "evaluation",
    "images",
    "profile",
)
"""What the task writes in its workdir."""
LOOK = "report.html"
"""Which of it to open first."""


def run(config: EditConfig, workdir: Path) -> None:
    """Edits, exports, evaluates and reports into `workdir`; goes on where an earlier run stopped.

    UserError, before anything is written, if settings, requests, model or workdir are unfit.
    """
    began = time.perf_counter()
    folders.require_writable(workdir, WRITES, config)
    job = prepare(config)
    for encoder in job.pipeline.encoders:
        require_room(config.stage_two, len(job.requests), encoder)

    def check(folder: Path) -> None:
        folders.require_same(folder, dataclasses.asdict(config), job.inputs)

    with running(config.run, workdir, WRITES, check) as run:
        folders.write_config(workdir, config, job.inputs, environment.describe())
        run.log.write("prepare", time.perf_counter() - began)
        exported = [site.encoder for site in job.sites]
        if not all((workdir / name).exists() for name in (*exported, "edit.safetensors")):
            edit(job, run)
        # As it was exported: what is measured is what the user gets.
        params = {name: read_text_params(job.pipeline, workdir / name, name) for name in exported}
        edited = with_text_params(job.pipeline, params)
        finish(job, edited, run)


def edit(job: Job, run: Run) -> None:
    """Both stages and the exports; edit.safetensors appears last, when all is done."""
    config, pipeline, workdir = job.config, job.pipeline, run.workdir
    for site in job.sites:
        text_encoder.require_replaceable(workdir / site.encoder)
    concept_bank.require_puttable(workdir / "bank", job.concepts)
    singles = [part for parts in job.parts for part in parts]
    found = iter(
        find_memories(
            pipeline, singles, job.prompts, config.stage_one, job.model, workdir / "bank", run
        )
    )
    memories = [[next(found) for _ in parts] for parts in job.parts]
    moments = find_measured(
        pipeline,
        job.captions,
        config.stage_two,
        edited_layers(config.stage_two, job.sites),
        config.moments,
        workdir / "moments",
        run,
    )
    factors = _mix(job, memories, moments, run)
    records = records_of(job, memories, factors)
    for request, record in zip(job.requests, records, strict=True):
        if request.task == "debias":
            bank.write(workdir / "bank", record.provenance, record.memory, record.details)
    concepts = concept_bank.of_requests(job.requests, records)
    concept_bank.put(workdir / "bank", concepts.concepts)
    write_edit(
        concepts,
        pipeline,
        job.model,
        moments,
        config.stage_two,
        config.model.export_dtype,
        run,
        compare_blocks=True,
    )


def finish(job: Job, edited: Pipeline, run: Run) -> None:
    """Evaluation, metrics.json and report.html."""
    config, workdir, progress = job.config.evaluation, run.workdir, run.config.progress
    evaluation, others, forms = None, {}, ()
    if job.judge is not None and config.enabled:
        models = edit_job.models(job, edited, run)
        scored = split(job.requests, job.judge.groups)
        with run.log.timed("evaluation"):
            evaluation = evaluate(scored[AICE], models, config, workdir, progress=progress)
            others = evaluate_others(scored, models, config, workdir, progress=progress)
        with run.log.timed("other_forms"):
            forms = other_forms.measure(job.pipeline, edited, job.requests, job.judge.groups)
        others["other_forms"] = [one._asdict() for one in forms]
    mixing = workdir / debias_search.FILE
    if mixing.exists():
        others["debias_search"] = checksums.read_json(mixing, "delete it", older=True)["found"]
    _, ledger = edit_file.read_ledger(workdir / "edit.safetensors")
    with run.log.timed("report"):
        _write_page(job, ledger, evaluation, forms, run)
    more = {
        site.encoder: ledger_of(ledger, site.encoder)["report"]
        for site in job.sites
        if site.encoder != FIRST
    }
    written = ledger["report"] | ({"encoders": more} if more else {})  # As the ledger has it.
    metrics: dict[str, Any] = {"requests": len(job.requests), "stage_two": written}
    if evaluation is not None:
        metrics |= as_json(evaluation.result)
    folders.write_json(workdir / "metrics.json", metrics | others | {"seconds": run.log.seconds()})


def _write_page(
    job: Job,
    ledger: Mapping[str, Any],
    evaluation: Evaluation | None,
    forms: Sequence[FormRecall],
    run: Run,
) -> None:
    """report.html, from what `workdir` holds and the edit's ledger says."""
    parts = [part for several in job.parts for part in several]
    about = [bank.provenance(part, job.config.stage_one, job.model) for part in parts]
    read = (bank.read(run.workdir / "bank", one) for one in about)
    found = [(part, memory) for part, memory in zip(parts, read, strict=True) if memory is not None]
    curves = [memory.curve for _, memory in found]
    settings = folders.read_config(run.workdir)
    reports = {site: edit_file.read_report(ledger_of(ledger, site.encoder)) for site in job.sites}
    written = {
        site.encoder: Written(
            [LayerBar(one.layer, one.asked, one.left, one.change) for one in report.layers],
            (report.distance_before, report.distance_after),
        )
        for site, report in reports.items()
    }
    units = {
        site.encoder: WrittenUnits(site.layer, report.units)
        for site, report in reports.items()
        if report.units is not None
    }
    data = ReportData(
        model=job.config.model.path,
        requests=len(job.requests),
        evaluation=evaluation,
        forms=forms,
        loss_curves=np.stack(curves) if curves else None,
        memories=[
            FoundMemory(f"{part.source} → {part.dests[0] or 'nothing'}", memory)
            for part, memory in found
        ],
        written=written,
        units=units,
        seconds=run.log.seconds(),
        config=settings["config"],
        versions=settings["environment"],
    )
    write_report(run.workdir / "report.html", data)


def _mix(
    job: Job,
    memories: Sequence[Sequence[bank.Memory]],
    moments: Mapping[str, Measured],
    run: Run,
) -> dict[int, Factors]:
    """The factors of every `debias` request, by its place in the job."""
    config, places = job.config, [i for i, one in enumerate(memories) if len(one) > 1]
    if not places:
        return {}
    assert job.judge is not None

    def solved(factors: Sequence[Factors]) -> Pipeline:
        records = records_of(job, memories, dict(zip(places, factors, strict=True)))
        concepts = concept_bank.of_requests(job.requests, records)
        edit = bank_solve.solve(concepts, job.pipeline, moments, config.stage_two)
        return stage_two.with_edit(job.pipeline, edit)

    search = debias_search.Search(
        [job.requests[i] for i in places],
        [memories[i] for i in places],
        job.pipeline,
        job.judge,
        config.debias,
        job.sites,
        run,
    )
    found = debias_search.find_mixtures(search, solved)
    return dict(zip(places, found.factors, strict=True))
