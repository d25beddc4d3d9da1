# ruff: noqa: RUF009 (sections of settings are frozen)
"""Task `text_report`: what solving a bank does, measured without drawing an image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from emcid_jax.config import (
    Count,
    EncoderName,
    ModelConfig,
    MomentConfig,
    RunConfig,
    StageTwoConfig,
)
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.stage_two import preservation
from emcid_jax.evaluation.text_space import measure as text_space
from emcid_jax.reporting.pages.text_space import write_text_report
from emcid_jax.runtime.terminal import show
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.bank_inputs import require_bank, solvable
from emcid_jax.workflow.find_moments import find_other_captions, moments_of, require_linear
from emcid_jax.workflow.inputs import encoder_of, names_to_keep


@dataclasses.dataclass(frozen=True)
class TextReportConfig:
    """Settings of this task."""

    task: Literal["text_report"] = "text_report"
    """Which task of main runs."""
    bank: str = ""
    """The bank's folder, e.g. `runs/mine/bank`."""
    keep: tuple[str, ...] = ()
    """Names that the edit should not change; edited ones are left out."""
    keep_path: str = ""
    """File of more such names, one a line; `sprites`: every object of the sprite world."""
    captions: Count = 2_000
    """Captions whose features are compared: of the source of `moments`, by its seed plus one."""
    moments_file: str = ""
    """Second moments measured before (`second_moments.safetensors` of a workdir); empty: they are
    measured here."""
    encoder: EncoderName = "text_encoder"
    """Which text encoder is looked at, of models with two."""
    model: ModelConfig = ModelConfig()
    moments: MomentConfig = MomentConfig()
    stage_two: StageTwoConfig = StageTwoConfig()
    run: RunConfig = RunConfig()

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        require_bank(self.bank)
        require_linear(self.stage_two)


Config = TextReportConfig
UNREAD = (
    "model.export_dtype",
    "run.save_every",
    "run.profile",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("config.json", "metrics.jsonl", "text_report.json", "text_report.html", "moments")
"""What the task writes in its workdir."""


def run(config: TextReportConfig, workdir: Path) -> None:
    """Solves the bank and leaves text_report.html and text_report.json in `workdir`.

    UserError, before anything is written, if settings, bank, model or names are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    keep = names_to_keep(config.keep, config.keep_path, "config.keep_path")
    corpus = find_other_captions(config.moments, config.captions)
    with solvable(config, workdir, WRITES, config.moments_file) as job:
        encoder = encoder_of(job.pipeline, config.encoder)
        moments = moments_of(job.moments[encoder.name])
        settings = preservation.resolved(config.stage_two).of(encoder.name)
        with job.run.log.timed("stage_two"):
            edit = bank_solve.solve_one(job.concepts, encoder, job.where, moments, settings)
        with job.run.log.timed("text_space"):
            found = text_space.measure(
                job.concepts, encoder, job.where, edit, moments, settings, keep, corpus
            )
        folders.write_json(workdir / "text_report.json", text_space.as_json(found))
        about = folders.read_config(workdir)["config"]
        write_text_report(
            workdir / "text_report.html", config.model.path, found, job.run.log.seconds(), about
        )
    worst = found.reached[0]
    show(
        f"{len(found.reached)} concepts, distance to the targets {found.distance[0]:.4g} -> "
        f"{found.distance[1]:.4g}, farthest {worst.source!r} ({worst.left:.1%} of the way left); "
        f"see {workdir / 'text_report.html'}"
    )
