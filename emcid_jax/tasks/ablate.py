"""Task `ablate`: one benchmark over many settings; memories and moments are shared between them.

A variant is a text of overrides, e.g. `stage_two.residual=released
stage_two.preservation_weight=1000.`; the empty text is the base setting. Rows
that `ablation.json` holds of the same settings and inputs are not measured again, so the task
resumes and can be widened.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

from emcid_jax import config as settings
from emcid_jax.config import Count, EditConfig
from emcid_jax.config.overrides import override
from emcid_jax.editing.stage_two import preservation
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import edit_job
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.inputs import require_blocks
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table, markdown
from emcid_jax.workflow.workdir import Run, running

SECTIONS = ("stage_one", "stage_two")


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """The setting that every variant changes."""
    task: str = "ablate"
    """Which task of main runs."""
    counts: tuple[Count, ...] = (10, 50, 100, 300)
    """Numbers of requests: the first so many of the file."""
    variants: tuple[str, ...] = ("",)
    """Overrides of stage_one and stage_two, separated by spaces."""

    def check(self) -> None:
        """UserError for an unfit base setting or variant."""
        self.base.check()
        if not self.base.evaluation.enabled:
            raise UserError("config.base.evaluation.enabled is False; the rows need it")
        for variant in self.variants:
            _varied(self.base, variant)


Config = AblateConfig
UNREAD = (
    "base.model.export_dtype",
    "base.run.profile",
    "base.debias",
    "base.evaluation.debias_seeds",
    "base.evaluation.debias_images",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("ablation.json", "ablation.md", "metrics.jsonl", "bank", "moments", "count-*")
"""What the task writes in its workdir."""
LOOK = "ablation.md"
"""Which of it to open first."""


def run(config: AblateConfig, workdir: Path) -> None:
    """Fills `workdir/ablation.json` and `workdir/ablation.md`.

    UserError, before anything is written, if requests, model or a variant are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    job = edit_job.prepare(config.base)
    for variant in config.variants:
        require_blocks(_varied(config.base, variant), job.pipeline)
    with running(config.base.run, workdir, WRITES) as run:
        table = Table(workdir / "ablation.json")
        asked = itertools.product(sorted(config.counts), config.variants)
        cells = [_cell(job, count, variant) for count, variant in asked]

        def show(rows: list[dict[str, Any]]) -> None:
            write_atomically(workdir / "ablation.md", as_markdown(rows).encode())

        measured(cells, table, run, "Cells", show, ["count-*/evaluation/*/*.npz"])


def _cell(job: Job, count: int, variant: str) -> Cell:
    """The first `count` requests of `job` with a variant's settings."""
    first = dataclasses.replace(job, config=_varied(job.config, variant)).first(count)
    config = first.config
    return Cell(
        {"count": count, "variant": variant},
        first.decides,
        functools.partial(_measure, first),
        cost=len(first.requests),
        needs=(config.stage_one, config.stage_two.solver),
        find=functools.partial(edit_job.find, first),
    )


def _varied(base: EditConfig, variant: str) -> EditConfig:
    """`base` with a variant's overrides; UserError names an unknown or unfit one."""
    values = dataclasses.asdict(base)
    override(values, variant, SECTIONS, "config.variants")
    found = settings.from_config_dict(values, EditConfig)
    return dataclasses.replace(found, stage_two=preservation.resolved(found.stage_two))


def _measure(job: Job, run: Run) -> dict[str, Any]:
    """The benchmark's aggregates and how far Stage II came, for one job."""
    edited, reports = edit_job.written(job, run)
    folder = run.workdir / f"count-{len(job.requests)}"
    result = edit_job.judged(job, edited, folder, run)
    return {
        "aice": {name: metric._asdict() for name, metric in result.metrics.items()},
        "reached": list(edit_job.distance(reports)),
        "images": result.images,
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per count and variant, one column per aggregate."""
    names = list(rows[0]["aice"])

    def cells(row: dict[str, Any]) -> list[str]:
        values = [row["aice"].get(name, {}).get("value") for name in names]
        figures = ["" if value is None else f"{value:.3f}" for value in values]
        return [str(row["count"]), row["variant"] or "base", *figures]

    return markdown(["n", "setting", *names], map(cells, rows))
