"""The main job: requests in, edited text encoder, figures and report out; resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax import parallel
from emcid_jax.concepts.conflicts import require_consistent
from emcid_jax.concepts.readers import read_requests
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import (
    EditConfig,
    EvaluationConfig,
    ModelConfig,
    RequestsConfig,
    StageTwoConfig,
)
from emcid_jax.editing import bank, export, stage_two
from emcid_jax.editing.propagation import SourcePrompts
from emcid_jax.editing.second_moment import SecondMoments
from emcid_jax.editing.stage_two import WeightEdit
from emcid_jax.errors import UserError
from emcid_jax.evaluation.evaluate import evaluate, make_plan
from emcid_jax.evaluation.judge import Judge, load_judge
from emcid_jax.evaluation.labels import OBJECT
from emcid_jax.models.weights import params_hash, read_params
from emcid_jax.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.sprites.bundled import model_folder
from emcid_jax.tasks import environment, results
from emcid_jax.tasks import workdir as folders
from emcid_jax.tasks.memories import Prompts, find_memories, read_prompts
from emcid_jax.tasks.moments import find_captions, find_moments

Config = EditConfig


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
    """None if there is no evaluation."""

    @property
    def inputs(self) -> dict[str, str]:
        """Hash of what a field names: the same name may mean something else another day."""
        asked = [dataclasses.asdict(request) | {"origin": ""} for request in self.requests]
        return {
            "requests.path": hash_of(asked),
            "model.path": hash_of(self.model),
            "moments.captions": hash_of(self.captions),
        }


def run(config: EditConfig, workdir: Path) -> None:
    """Edits, exports, evaluates and reports into `workdir`; goes on where an earlier run stopped.

    UserError, before anything is written, if settings, requests, model or workdir are unfit.
    """
    if config.run.compile_cache:
        environment.use_compile_cache()
    began = time.perf_counter()
    folders.require_writable(workdir)
    job = prepare(config)
    with folders.exclusive(workdir):
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
    requests = _read_requests(config.requests)
    captions = find_captions(config.moments)
    folder = _require_model(config.model)
    pipeline = load_pipeline(folder, jnp.dtype(config.model.dtype))
    _require_layers(config.stage_two, pipeline)
    prompts = read_prompts(pipeline, requests, config.stage_one)
    judge = None
    if config.evaluation.enabled:
        judge = _load_judge(config.evaluation, folder)
        for reason in make_plan(requests, judge.groups[OBJECT], config.evaluation).skipped:
            logging.warning("not evaluated: %s", reason)
    hashes = _model_hashes(pipeline, config.model)
    return Job(config, requests, pipeline, prompts, captions, hashes, judge)


def edit(job: Job, workdir: Path, log: folders.Log) -> None:
    """Both stages and the exports; edit.safetensors appears last, when all is done."""
    config, pipeline = job.config, job.pipeline
    memories = find_memories(
        pipeline,
        job.requests,
        job.prompts,
        config.stage_one,
        config.run,
        job.model,
        workdir / "bank",
        log,
    )
    moments = find_moments(
        pipeline,
        job.captions,
        config.stage_two.layers,
        config.moments,
        config.run,
        workdir / "moments",
        log,
    )
    text = pipeline.params["text_encoder"]
    with log.timed("stage_two") as figures:
        solved = solve(job, memories, moments)
        report = solved.report
        figures["distance"] = [report.distance_before, report.distance_after]
    with log.timed("export"):
        edited = stage_two.apply_edit(text, solved)
        export.write_text_encoder(
            workdir / "text_encoder",
            edited,
            pipeline.folder / "text_encoder",
            config.model.export_dtype,
        )
        ledger = _ledger(job, dataclasses.asdict(report), params_hash(edited))
        export.write_edit(workdir / "edit.safetensors", solved.deltas, ledger)


def solve(job: Job, memories: Sequence[bank.Memory], moments: SecondMoments) -> WeightEdit:
    """Stage II of the job, from the pristine text encoder."""
    source = job.prompts.source
    return stage_two.solve(
        job.pipeline.text,
        job.pipeline.params["text_encoder"],
        np.stack([memory.z for memory in memories]),
        SourcePrompts(source.ids, source.positions, source.mask),
        moments,
        job.config.stage_two,
        block=job.config.stage_one.layer,
        weights=np.array([request.weight for request in job.requests]),
    )


def finish(job: Job, edited: Pipeline, workdir: Path, log: folders.Log) -> None:
    """Evaluation, metrics.json and report.html."""
    config = job.config
    evaluation = None
    if job.judge is not None:
        with log.timed("evaluation"):
            evaluation = evaluate(
                job.requests,
                job.pipeline,
                edited,
                job.judge,
                config.evaluation,
                workdir,
                base_hash=hash_of(job.model),
                mesh=parallel.make_mesh(),
                progress=config.run.progress,
            )
    _, ledger = export.read_edit(workdir / "edit.safetensors")
    with log.timed("report"):
        memories = [bank.provenance(r, config.stage_one, job.model) for r in job.requests]
        results.write_page(workdir, config, memories, ledger["report"], evaluation, log)
    results.write_metrics(workdir, len(job.requests), ledger["report"], evaluation, log)


def _read_requests(config: RequestsConfig) -> list[EditRequest]:
    """The requests of the file, checked one by one and against each other."""
    requests = read_requests(Path(config.path), config.templates or None)
    requests = requests[: config.count or None]
    for conflict in require_consistent(requests):
        logging.warning("%s", conflict.message)
    return requests


def _require_model(config: ModelConfig) -> Path:
    """The folder that `config.path` names; UserError if there is none."""
    folder = model_folder(config.path)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"config.model.path is {config.path!r}, but {folder} is no diffusers folder (it has no "
            "model_index.json); give `sprites` or a Stable Diffusion folder"
        )
    return folder


def _require_layers(config: StageTwoConfig, pipeline: Pipeline) -> None:
    blocks = pipeline.text.config.num_hidden_layers
    if config.layers[-1] >= blocks:
        raise UserError(
            f"config.stage_two.layers is {config.layers}, but the text encoder of "
            f"{pipeline.folder} has blocks 0 to {blocks - 1}"
        )


def _model_hashes(pipeline: Pipeline, config: ModelConfig) -> dict[str, str]:
    """What a memory depends on beside its request: every part of the model, and its precision."""
    hashes = {name: params_hash(params) for name, params in pipeline.params.items()}
    tokenizer = hashlib.sha256()
    for file in sorted((pipeline.folder / "tokenizer").iterdir()):
        if file.is_file():
            tokenizer.update(f"{file.name}\n".encode() + file.read_bytes())
    return hashes | {
        "tokenizer": tokenizer.hexdigest(),
        "scheduler": hash_of(dict(pipeline.scheduler_config)),
        "dtype": config.dtype,
    }


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


def hash_of(content: Any) -> str:
    """SHA-256 (hex) of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _ledger(job: Job, report: dict[str, Any], edited_hash: str) -> dict[str, Any]:
    """What is in the weight edit, and for which model."""
    config = job.config
    return {
        "format": 1,
        "base": job.model,
        "edited": edited_hash,
        "stage_one": dataclasses.asdict(config.stage_one),
        "moments": dataclasses.asdict(config.moments),
        "stage_two": dataclasses.asdict(config.stage_two),
        "report": report,
        "requests": [
            {
                "source": request.source,
                "dest": list(request.dests),
                "task": request.task,
                "weight": request.weight,
                "memory": bank.key(bank.provenance(request, config.stage_one, job.model)),
            }
            for request in job.requests
        ],
    }


def _read_edited(pipeline: Pipeline, workdir: Path) -> dict[str, Any]:
    """The text encoder as it was exported: what is measured is what the user gets."""
    base = pipeline.params["text_encoder"]
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), base)
    return read_params(workdir / "text_encoder", abstract)
