"""Task `baseline`: EMCID and other methods on the same model, requests, prompts, seeds and judge.

A row is `NAME: OVERRIDES`, e.g. `UCE, replace: method=uce uce.value=replace`. Rows that
`baselines.json` holds already, made with the same settings, are skipped: the task resumes and can
be widened.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from emcid_jax import config as settings
from emcid_jax import parallel
from emcid_jax.baselines import fine_tune, uce
from emcid_jax.baselines.fine_tune import FineTuneConfig
from emcid_jax.baselines.uce import UceConfig
from emcid_jax.config import Count, EditConfig
from emcid_jax.editing.bank import hash_of
from emcid_jax.editing.objective import StageOneInputs
from emcid_jax.errors import UserError
from emcid_jax.evaluation.aice import AiceResult, as_json
from emcid_jax.pipeline import Pipeline
from emcid_jax.tasks import edit, environment, inputs, memories, trial
from emcid_jax.tasks import workdir as folders
from emcid_jax.tasks.overrides import override

Method = Literal["emcid", "uce", "fine-tune"]
CHUNK = 16
"""Requests whose training images are drawn together."""
COLUMNS = {
    "Source Forget": ("aice", "efficacy_source_forget"),
    "Source2Dest": ("aice", "efficacy_source2dest"),
    "general. Source2Dest": ("aice", "generalization_source2dest"),
    "Alias2Dest": ("aice", "alias2dest"),
    "Dest Forget": ("aice", "efficacy_dest_forget"),
    "Holdout Delta": ("aice", "holdout_delta"),
    "Acc_e": ("accuracy", "acc_e"),
    "Acc_s": ("accuracy", "acc_s"),
    "Acc_g": ("accuracy", "acc_g"),
    "H_o": ("accuracy", "h_o"),
}


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """Model, requests, evaluation and EMCID's settings, which every row starts from."""
    task: str = "baseline"
    """Which task of main runs."""
    method: Method = "emcid"
    """Who edits: `emcid`; `uce`, the UNet in closed form; `fine-tune`, Adam on weights."""
    uce: UceConfig = dataclasses.field(default_factory=UceConfig)
    fine_tune: FineTuneConfig = dataclasses.field(default_factory=FineTuneConfig)
    counts: tuple[Count, ...] = (10, 100)
    """Numbers of requests: the first so many of the file."""
    rows: tuple[str, ...] = ("EMCID:",)
    """NAME: overrides of method, stage_one, stage_two, uce and fine_tune, separated by spaces."""

    def check(self) -> None:
        """UserError for an unfit setting or row."""
        if not self.base.evaluation.enabled:
            raise UserError("config.base.evaluation.enabled is False; a comparison needs it")
        for row in self.rows:
            varied(self, row)


Config = BaselineConfig


def run(config: BaselineConfig, workdir: Path) -> None:
    """Fills `workdir/baselines.json` and `workdir/baselines.md`."""
    if config.base.run.compile_cache:
        environment.use_compile_cache()
    folders.require_writable(workdir)
    path = workdir / "baselines.json"
    with folders.exclusive(workdir):
        rows: list[dict[str, Any]] = folders.read_json(path)["rows"] if path.exists() else []
        log = folders.Log(workdir / "metrics.jsonl")
        for count in sorted(config.counts):
            requests = dataclasses.replace(config.base.requests, count=count)
            job = edit.prepare(dataclasses.replace(config.base, requests=requests))
            if mixed := [request for request in job.requests if request.task == "debias"]:
                raise UserError(
                    f"{mixed[0].origin}: task: 'debias' has several destinations, which the "
                    "baselines have no use for; leave such requests out"
                )
            for text in config.rows:
                name, chosen = varied(config, text)
                key = hash_of([job.inputs, _settings(chosen)])
                if any(row["count"] == count and row["settings"] == key for row in rows):
                    continue
                mine = dataclasses.replace(job, config=chosen.base)
                began = time.perf_counter()
                edited, about = _METHODS[chosen.method](mine, chosen, workdir, log)
                seconds = time.perf_counter() - began
                result = trial.judged(mine, edited, workdir)
                found = {"count": count, "name": name, "settings": key, "row": text}
                found |= {"seconds": round(seconds, 1), "edit": about} | _figures(result)
                rows = [row for row in rows if (row["count"], row["name"]) != (count, name)]
                rows.append(found)
                folders.write_json(path, {"rows": rows})
                (workdir / "baselines.md").write_text(table(rows), "utf8")


def varied(config: BaselineConfig, row: str) -> tuple[str, BaselineConfig]:
    """A row's name and settings; UserError if it is none."""
    name, colon, text = row.partition(":")
    if not colon or not name.strip():
        raise UserError(f"config.rows: {row!r} has no name; write NAME: OVERRIDES")
    values = dataclasses.asdict(dataclasses.replace(config, rows=()))
    shown = values["base"] | {part: values[part] for part in ("method", "uce", "fine_tune")}
    sections = ("method", "stage_one", "stage_two", "uce", "fine_tune")
    override(shown, text, sections, "config.rows")
    values["method"] = shown["method"]  # The other sections are changed where they are.
    return name.strip(), settings.from_config_dict(values, BaselineConfig)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per count and method; the unedited model's accuracies come first."""
    head = ["n", "method", *COLUMNS, "variety", "intact", "s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for count in sorted({row["count"] for row in rows}):
        mine = [row for row in rows if row["count"] == count]
        clean = [
            _cell(mine[0], part, f"pre_{name}") if part == "accuracy" else ""
            for part, name in COLUMNS.values()
        ]
        lines.append(f"| {count} | unedited | {' | '.join(clean)} | | | |")
        for row in mine:
            cells = [_cell(row, part, name) for part, name in COLUMNS.values()]
            verdict = row["guard"] or {"variety": float("nan"), "intact": None}
            cells += [
                f"{verdict['variety']:.2f}",
                {True: "yes", False: "NO"}.get(verdict["intact"], ""),
            ]
            lines.append(
                f"| {count} | {row['name']} | {' | '.join(cells)} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], part: str, name: str) -> str:
    value = row[part].get(name, {}).get("value")
    return "" if value is None else f"{value:.2f}"


def _settings(config: BaselineConfig) -> dict[str, Any]:
    """What decides a row's figures."""
    values: dict[str, Any] = {"method": config.method, "base": dataclasses.asdict(config.base)}
    for part in ("run", "requests", "model"):  # Requests and model count by content.
        del values["base"][part]
    if config.method == "uce":
        values["uce"] = dataclasses.asdict(config.uce)
    if config.method == "fine-tune":
        values["fine_tune"] = dataclasses.asdict(config.fine_tune)
    return values


def _figures(result: AiceResult) -> dict[str, Any]:
    found = as_json(result)
    return {name: found[name] for name in ("aice", "accuracy", "guard", "images")}


def _emcid(
    job: edit.Job, config: BaselineConfig, workdir: Path, log: folders.Log
) -> tuple[Pipeline, dict[str, Any]]:
    edited, report = trial.written(job, workdir, log)
    return edited, {"reached": [report.distance_before, report.distance_after]}


def _uce(
    job: edit.Job, config: BaselineConfig, workdir: Path, log: folders.Log
) -> tuple[Pipeline, dict[str, Any]]:
    with log.timed("uce"):
        keep = inputs.names_to_keep(
            config.uce.preserve, config.uce.preserve_path, "config.uce.preserve_path"
        )
        found = uce.solve(job.pipeline, job.requests, keep, config.uce)
        unet = uce.apply_edit(job.pipeline.params["unet"], found)
    params = job.pipeline.params | {"unet": unet}
    return dataclasses.replace(job.pipeline, params=params), {"condition": found.condition}


def _fine_tune(
    job: edit.Job, config: BaselineConfig, workdir: Path, log: folders.Log
) -> tuple[Pipeline, dict[str, Any]]:
    training = _training_inputs(job)
    total = sum(1 for _ in fine_tune.batches(len(job.requests), config.fine_tune))
    losses: list[float] = []
    params = job.pipeline.params
    steps = fine_tune.train(job.pipeline, training, job.config.stage_one, config.fine_tune)
    with log.timed("fine_tune") as figures:
        bar = tqdm(steps, "Fine-tuning", total, disable=not job.config.run.progress)
        for progress in bar:
            params = progress.params
            losses.append(progress.loss)
        tenth = max(1, total // 10)
        ends = [float(np.mean(part)) for part in (losses[:tenth], losses[-tenth:])]
        figures["loss"] = ends
    return dataclasses.replace(job.pipeline, params=params), {"loss": ends}


def _training_inputs(job: edit.Job) -> StageOneInputs:
    """What Stage I would read, of all requests."""
    mesh = parallel.make_mesh()
    count = len(job.requests)
    chunks = [
        memories.prepare_chunk(
            job.pipeline,
            job.requests,
            job.prompts,
            slice(first, min(first + CHUNK, count)),
            job.config.stage_one,
            mesh,
        )
        for first in range(0, count, CHUNK)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)


_METHODS = {"emcid": _emcid, "uce": _uce, "fine-tune": _fine_tune}
