"""Task `layer_ranges`: every range of edited layers (first, last), judged in text space.

A memory depends on the last layer alone, which is Stage I's: one bank per last layer serves all
its ranges. Rows that `layer_ranges.json` holds of the same settings and inputs are not measured
again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from emcid_jax.concepts.templates import slot_count
from emcid_jax.config import CountOrZero, EditConfig
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.evaluation.text_space.nearest_name import Reader, make_reader
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.reporting.plots.heat_maps import heat_maps
from emcid_jax.reporting.plots.layer_maps import panels
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import edit_job
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.inputs import names_to_keep, require_one_encoder
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table, markdown
from emcid_jax.workflow.workdir import Run, running


@dataclasses.dataclass(frozen=True)
class LayerRangesConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """Requests, model and both stages; `stage_one.layer` and `stage_two.layers` are replaced."""
    task: Literal["layer_ranges"] = "layer_ranges"
    """Which task of main runs."""
    last_layers: tuple[CountOrZero, ...] = ()
    """Where the ranges end; empty: all but the last block, whose states no other token reads."""
    keep: tuple[str, ...] = ()
    """Names that the edit should not change; edited ones are left out."""
    keep_path: str = ""
    """File of more such names, one a line; `sprites`: every object of the sprite world."""
    keep_count: CountOrZero = 0
    """So many of these names are judged, spread evenly; 0: all. All of them can be read."""
    template: str = "a picture of a {}"
    """Template of judging; no request should use it."""
    images: bool = False
    """Whether `base.evaluation` is drawn for every range too: hours."""

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if slot_count(self.template) != 1:
            raise UserError(f"config.template is {self.template!r}; a template holds one {{}}")
        if not (self.keep or self.keep_path):
            raise UserError(
                "config.keep and keep_path are empty; name what the edit should not change"
            )


Config = LayerRangesConfig
UNREAD = (
    "base.model.export_dtype",
    "base.run.profile",
    "base.debias",
    "base.evaluation.debias_seeds",
    "base.evaluation.debias_images",
    "base.evaluation.enabled",
    "base.stage_one.layer",
    "base.stage_two.layers",
)
"""Settings that the task has no use for: see `config.unread`."""
COLUMNS = {
    "edited": "edit success",
    "source": "source left",
    "kept": "held out",
    "both": "mean of edit success and held out",
    "gap": "distance to destination",
    "drift": "drift",
    "left": "distance to target",
}
"""Columns of `layer_ranges.md`, by their keys in `layer_ranges.json`."""
WRITES = ("layer_ranges.*", "metrics.jsonl", "bank", "moments", "evaluation", "images")
"""What the task writes in its workdir."""
LOOK = "layer_ranges.png"
"""Which of it to open first."""


def run(config: LayerRangesConfig, workdir: Path) -> None:
    """Fills `workdir/layer_ranges.json`, `layer_ranges.md` and `layer_ranges.png`.

    UserError, before anything is written, if settings, requests, names or model are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    keep = names_to_keep(config.keep, config.keep_path, "config.keep_path")
    evaluation = dataclasses.replace(config.base.evaluation, enabled=config.images)
    base = dataclasses.replace(config.base, evaluation=evaluation)
    job = edit_job.prepare(_with_layers(base, 0, 0))  # Which there are, the model says.
    require_one_encoder(job.pipeline, config.task)
    lasts = _lasts(config, job.pipeline.encoder.model.config.num_hidden_layers)
    with running(base.run, workdir, WRITES) as run:
        table = Table(workdir / "layer_ranges.json")
        judged_by = [keep, config.keep_count, config.template]

        @functools.cache
        def reader() -> Reader:
            encoder = job.pipeline.encoder
            return make_reader(encoder, job.requests, keep, config.template, config.keep_count)

        @functools.lru_cache(maxsize=1)
        def find(last: int, run: Run) -> edit_job.Found:
            """What all ranges share that end there."""
            return edit_job.find(_varied(job, last, last), run)

        def cell(first: int, last: int) -> Cell:
            varied, own = _varied(job, first, last), functools.partial(find, last)
            return Cell(
                {"first": first, "last": last},
                [varied.decides, *judged_by],
                lambda run: _measure(varied, reader(), functools.partial(own, run), run),
                cost=1 + last - first,
                needs=last,
                find=own,
            )

        cells = [cell(first, last) for last in lasts for first in range(last + 1)]
        if not measured(cells, table, run, "Ranges", files=["evaluation/*/*.npz"]):
            return
        write_atomically(workdir / "layer_ranges.md", as_markdown(table.rows).encode())
        write_atomically(workdir / "layer_ranges.png", heat_maps(panels(table.rows)))


def _measure(
    job: Job, reader: Reader, find: Callable[[], edit_job.Found], run: Run
) -> dict[str, Any]:
    """A row's figures."""
    with run.log.timed("layer_pair", layers=job.config.stage_two.layers):
        solved = edit_job.solve(job, *find())
        report = solved[FIRST].report
        edited = stage_two.with_edit(job.pipeline, solved)
        read = reader.read(edited.params[FIRST])
        row = read._asdict() | {"both": read.both}
        row["left"] = report.distance_after / report.distance_before
        if job.config.evaluation.enabled:
            result = edit_job.judged(job, edited, run.workdir, run)
            row["aice"] = {name: one._asdict() for name, one in result.metrics.items()}
    return row


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per range."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        first, last = row["first"], row["last"]
        layers = str(last) if first == last else f"{first}-{last}"
        return [layers, *(f"{row[key]:.2f}" for key in COLUMNS)]

    return markdown(["layers", *COLUMNS.values()], map(cells, rows))


def _varied(job: Job, first: int, last: int) -> Job:
    """The job with layers `first` to `last`."""
    return dataclasses.replace(job, config=_with_layers(job.config, first, last))


def _with_layers(config: EditConfig, first: int, last: int) -> EditConfig:
    stage_one = dataclasses.replace(config.stage_one, layer=last)
    layers = dataclasses.replace(config.stage_two, layers=tuple(range(first, last + 1)))
    return dataclasses.replace(config, stage_one=stage_one, stage_two=layers)


def _lasts(config: LayerRangesConfig, blocks: int) -> tuple[int, ...]:
    """The last layers. UserError for one that the text encoder has not."""
    lasts = tuple(sorted(set(config.last_layers))) or tuple(range(blocks - 1))
    if lasts[-1] >= blocks:
        raise UserError(
            f"config.last_layers has {lasts[-1]}, but the text encoder has blocks 0 to {blocks - 1}"
        )
    return lasts
