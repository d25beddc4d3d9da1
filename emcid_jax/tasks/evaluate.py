"""Task `evaluate`: EMCID and other methods on the same model, requests, prompts, seeds and judge.

A row is `NAME: OVERRIDES`, e.g. `UCE, replace: method=uce uce.value=replace`; a cell is a row at a
number of requests. Cells that `evaluation.json` holds of the same settings and inputs are not
measured again: the task resumes and can be widened.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax import config as settings
from emcid_jax.baselines.fine_tune import FineTuneConfig
from emcid_jax.baselines.uce import UceConfig
from emcid_jax.config import Count, CountOrZero, EditConfig
from emcid_jax.config.overrides import override
from emcid_jax.editing.stage_two import preservation
from emcid_jax.evaluation.benchmarks import mixed as comparison
from emcid_jax.evaluation.benchmarks import other_forms, quality
from emcid_jax.evaluation.benchmarks.mixed import Plan
from emcid_jax.evaluation.benchmarks.quality import QualityConfig
from emcid_jax.evaluation.benchmarks.untouched_names import UntouchedNames, split_untouched
from emcid_jax.evaluation.drawing.kept_pictures import slug
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.reporting import tables
from emcid_jax.reporting.pages.collected import gather
from emcid_jax.reporting.pages.comparison import ComparisonData, Gathered, report_html
from emcid_jax.reporting.plots import before_after
from emcid_jax.reporting.plots import comparison as comparison_figures
from emcid_jax.reporting.plots.before_after import Grid, make_grid
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import edit_job, environment, methods
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.inputs import read_requests, require_blocks
from emcid_jax.workflow.methods import Edited, Method
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table
from emcid_jax.workflow.workdir import Run, running


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """Model, requests, evaluation and EMCID's settings, which every row starts from."""
    task: str = "evaluate"
    """Which task of main runs."""
    method: Method = "emcid"
    """Who edits: `emcid`; `uce`, the UNet in closed form; `fine-tune`, Adam on weights."""
    keep: bool = False
    """Whether the method is given names to protect: half of those that no request has, and the
    destinations. EMCID then solves by `ridge+preserve`."""
    max_requests: CountOrZero = 0
    """Only up to so many requests; 0: any number."""
    uce: UceConfig = dataclasses.field(default_factory=UceConfig)
    fine_tune: FineTuneConfig = dataclasses.field(default_factory=FineTuneConfig)
    counts: tuple[Count, ...] = (10, 100)
    """Numbers of requests: the first so many of the file."""
    rows: tuple[str, ...] = ("EMCID:",)
    """NAME: overrides of method, keep, max_requests, stage_one, stage_two, uce and fine_tune,
    separated by spaces."""
    max_judged: CountOrZero = 150
    """At most so many requests of a cell are judged, spread evenly; 0: all. Cells of fewer requests
    draw more prompts of each, up to so many images a set."""
    general: bool = False
    """Whether general quality is measured too: CLIP score and FID of captions that name no source
    of the file."""
    quality: QualityConfig = dataclasses.field(default_factory=QualityConfig)
    grid: Count = 100
    """The page shows pictures of the first row at this number of requests, or the nearest."""
    gather: tuple[str, ...] = ()
    """Work folders of `trace`, `layer_ranges`, `ablate` and `sequential` whose figures it shows."""

    def check(self) -> None:
        """UserError for an unfit setting or row."""
        evaluation = self.base.evaluation
        if not evaluation.enabled:
            raise UserError("config.base.evaluation.enabled is False; a comparison needs it")
        if evaluation.holdout_path:
            raise UserError(
                f"config.base.evaluation.holdout_path is {evaluation.holdout_path!r}; a comparison "
                "judges names that no request has; leave it empty"
            )
        if self.method == "fine-tune" and self.base.stage_one.objective == "attention":
            raise UserError(
                "config.base.stage_one.objective is 'attention', but config.method 'fine-tune' "
                "knows the noise and text losses alone; set another objective in its row"
            )
        if self.keep and self.method == "fine-tune":
            raise UserError("config.keep is True, but config.method 'fine-tune' protects no names")
        names = [slug(varied(self, row)[0]) for row in self.rows]
        if again := [
            row for row, name in zip(self.rows, names, strict=True) if names.count(name) > 1
        ]:
            raise UserError(f"config.rows: {again[1]!r} has the name of another row; rename it")


Config = EvaluateConfig
UNREAD = (
    "base.model.export_dtype",
    "base.run.profile",
    "base.debias",
    "base.evaluation.debias_seeds",
    "base.evaluation.debias_images",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = (
    "evaluation.*",
    "grid.png",
    "curves.png",
    "metrics.jsonl",
    "stage_one-*.jsonl",
    "bank",
    "moments",
    "cells",
    "evaluation",
    "images",
)
"""What the task writes in its workdir."""
LOOK = "evaluation.html"
"""Which of it to open first."""
_OF_A_CELL = (
    "cells/*",
    "evaluation/*/*.npz",
    f"images/{comparison.BENCHMARK}/*/*",
)
"""What a cell leaves beside its row."""


class General(NamedTuple):
    """What general quality is measured by."""

    captions: list[quality.QualityCaption]
    evaluators: quality.Evaluators

    @property
    def decides(self) -> list[Any]:
        """All that it depends on, by content."""
        asked = [(one.prompt, one.seed, one.real and one.real.name) for one in self.captions]
        return [asked, *(one.fingerprint for one in self.evaluators)]


def run(config: EvaluateConfig, workdir: Path) -> None:
    """Fills `workdir/evaluation.json`, `.csv`, `.md` and `.html`, and `workdir/cells/`.

    UserError, before anything is written, if settings, requests, model or `gather` are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    gathered = gather(config.gather) if parallel.is_first() else []
    job, untouched = prepare(config)
    general = _general(config, job)
    with running(config.base.run, workdir, WRITES) as run:
        table = Table(workdir / "evaluation.json")
        plans = functools.cache(lambda count: _plan(job.first(count), untouched, config))
        cells = [
            _cell(job, job.first(count), plans(count), chosen, name, untouched, general)
            for count, name, chosen in _cells(config)
        ]
        show = functools.partial(write, workdir=workdir)
        if measured(cells, table, run, "Cells", show, _OF_A_CELL):
            _report(config, table.rows, gathered, workdir)


def _cells(config: EvaluateConfig) -> list[tuple[int, str, EvaluateConfig]]:
    """Number of requests, name and settings of every cell that is asked for."""
    rows = [varied(config, text) for text in config.rows]
    return [
        (count, name, chosen)
        for count in sorted(config.counts)
        for name, chosen in rows
        if not chosen.max_requests or count <= chosen.max_requests
    ]


def _cell(
    job: Job,
    first: Job,
    plan: Plan,
    config: EvaluateConfig,
    name: str,
    untouched: UntouchedNames,
    general: General | None,
) -> Cell:
    """A row's cell for the requests `first` of `job`."""
    about = {"count": len(first.requests), "name": name}
    edited = dataclasses.replace(first, config=config.base).decides
    decides = [edited, untouched.to_protect, plan.draws(), _settings(config, general)]
    measure = functools.partial(_measure, job, first, plan, config, about, untouched, general)
    if config.method != "emcid":
        return Cell(about, decides, measure, cost=about["count"])
    found = _job_of_memories(job, config)
    needs = len(found.requests), found.config.stage_one, found.config.stage_two.solver
    find = functools.partial(methods.found, found)
    return Cell(about, decides, measure, about["count"], needs, find)


def _measure(
    job: Job,
    first: Job,
    plan: Plan,
    config: EvaluateConfig,
    cell: Mapping[str, Any],
    untouched: UntouchedNames,
    general: General | None,
    run: Run,
) -> dict[str, Any]:
    """A cell's figures: `first` are its requests of `job`, `cell` its count and its row's name."""
    with run.log.timed("edit", **cell):
        made = _edited(job, config, cell["count"], untouched, run)
    with run.log.timed("judge", **cell):
        file = f"{cell['count']}-{slug(cell['name'])}"
        return _judged(first, plan, made, file, general, run)


def prepare(config: EvaluateConfig) -> tuple[Job, UntouchedNames]:
    """The job of the largest count, and names that no request of the whole file has.

    UserError for what is unfit; touches nothing.
    """
    base, most = config.base, max(config.counts)
    every = read_requests(dataclasses.replace(base.requests, count=0))
    if most > len(every):
        raise UserError(f"config.counts has {most}, but there are {len(every)} requests")
    if mixed := [request for request in every if request.task == "debias"]:
        raise UserError(
            f"{mixed[0].origin}: task: 'debias' has several destinations, which the other methods "
            "have no use for; leave such requests out"
        )
    requests = dataclasses.replace(base.requests, count=most)
    job = edit_job.prepare(dataclasses.replace(base, requests=requests))
    for row in config.rows:
        require_blocks(varied(config, row)[1].base, job.pipeline)
    assert job.judge is not None
    evaluation = base.evaluation
    return job, split_untouched(
        every, job.judge.groups, evaluation.holdout, evaluation.prompts_per_request
    )


def varied(config: EvaluateConfig, row: str) -> tuple[str, EvaluateConfig]:
    """A row's name and settings; UserError if it is none."""
    name, colon, text = row.partition(":")
    if not colon or not slug(name):
        raise UserError(f"config.rows: {row!r} has no name; write NAME: OVERRIDES")
    values = dataclasses.asdict(dataclasses.replace(config, rows=()))
    own = ("method", "keep", "max_requests", "uce", "fine_tune")
    shown = values["base"] | {part: values[part] for part in own}
    override(shown, text, ("stage_one", "stage_two", *own), "config.rows")
    for part in own[:3]:  # The sections are changed where they are.
        values[part] = shown[part]
    found = settings.from_config_dict(values, EvaluateConfig)
    stage_two = preservation.resolved(found.base.stage_two)
    base = dataclasses.replace(found.base, stage_two=stage_two)
    return name.strip(), dataclasses.replace(found, base=base)


def write(rows: list[dict[str, Any]], workdir: Path) -> None:
    """The figures as CSV and Markdown."""
    for name, made in (("csv", tables.as_csv), ("md", tables.as_markdown)):
        write_atomically(workdir / f"evaluation.{name}", made(rows).encode())


def _report(
    config: EvaluateConfig,
    rows: list[dict[str, Any]],
    gathered: Sequence[Gathered],
    workdir: Path,
) -> None:
    """`evaluation.html`, and its curves and pictures as `curves.png` and `grid.png`."""
    grid = _grid(config, rows, workdir)
    if grid is not None:
        write_atomically(workdir / "grid.png", before_after.sheet(grid))
    if rows:
        write_atomically(workdir / "curves.png", comparison_figures.curves(rows, "png"))
    data = ComparisonData(
        config.base.model.path,
        rows,
        grid,
        gathered,
        dataclasses.asdict(config),
        environment.describe(),
    )
    write_atomically(workdir / "evaluation.html", report_html(data).encode())


def _grid(config: EvaluateConfig, rows: list[dict[str, Any]], workdir: Path) -> Grid | None:
    """The pictures of the first row's cell at the number of requests nearest to `config.grid`."""
    name = varied(config, config.rows[0])[0] if config.rows else ""
    mine = [row for row in rows if row["name"] == name]
    if not mine:
        return None
    row = min(mine, key=lambda row: (abs(row["count"] - config.grid), row["count"]))
    path = workdir / "cells" / f"{row['cell']}.json"
    records = checksums.read_json(path, "remove it", older=True)["records"]
    root = workdir / "images" / comparison.BENCHMARK
    title = f"{name}, {row['count']:,} requests"
    return make_grid(title, records, root / "before", root / f"after-{row['cell']}")


def _plan(job: Job, untouched: UntouchedNames, config: EvaluateConfig) -> Plan:
    """What one number of requests is judged by."""
    assert job.judge is not None
    requests, evaluation = evenly(job.requests, config.max_judged), job.config.evaluation
    if evaluation.prompts_per_request:
        prompts = max(evaluation.prompts_per_request, config.max_judged // len(requests))
        evaluation = dataclasses.replace(evaluation, prompts_per_request=prompts)
    sources = [request.source for request in job.requests]
    return comparison.make_plan(requests, untouched, job.judge.groups, evaluation, sources)


def _edited(
    job: Job, config: EvaluateConfig, count: int, untouched: UntouchedNames, run: Run
) -> Edited:
    """The model with the first `count` requests in it, by the row's method."""
    job = _job_of_memories(job, config)
    keep: tuple[str, ...] = ()
    if config.keep:
        goals = (request.dests[0] for request in job.requests[:count])
        keep = (*untouched.to_protect, *dict.fromkeys(goal for goal in goals if goal))
    if config.method == "emcid":
        return methods.emcid(job, count, keep, run)
    if config.method == "uce":
        return methods.by_uce(job, count, keep, config.uce)
    return methods.fine_tuned(job, count, config.fine_tune, run)


def _job_of_memories(job: Job, config: EvaluateConfig) -> Job:
    """The job of all requests that any cell of a row edits, with the row's settings."""
    first = min(config.max_requests or len(job.requests), len(job.requests))
    return dataclasses.replace(job.first(first), config=config.base)


def _general(config: EvaluateConfig, job: Job) -> General | None:
    """What general quality is measured by, the same for every cell; None if it is not."""
    if not config.general:
        return None
    every = read_requests(dataclasses.replace(config.base.requests, count=0))
    captions = quality.read_captions(config.quality, [request.source for request in every])
    return General(captions, quality.load_evaluators(config.quality, job.pipeline, job.judge))


def _judged(
    job: Job, plan: Plan, made: Edited, name: str, general: General | None, run: Run
) -> dict[str, Any]:
    """A cell's figures; its records go to `cells/NAME.json`."""
    assert job.judge is not None
    evaluation, progress = job.config.evaluation, run.config.progress
    models = edit_job.models(job, made.pipeline, run)
    readings = comparison.read(plan, models, evaluation, run.workdir, name, progress=progress)
    found = comparison.score(plan, readings)
    forms = other_forms.measure(job.pipeline, made.pipeline, job.requests, job.judge.groups)
    found["forms"] = {one.form: {"names": one.names, "value": one.recall} for one in forms}
    if general is not None:
        read = quality.evaluate(
            general.captions,
            models,
            general.evaluators,
            evaluation,
            run.workdir,
            progress=progress,
        )
        found["quality"] = read
        for model, side in (("clean", "before"), ("edited", "after")):
            found[model]["clip"] = read["clip_score"][side]
        found["edited"]["fid"] = {"value": read["fid"]["change"]}
    records = {part: found.pop(part) for part in ("records", "held", "skipped")}
    folders.write_json(run.workdir / "cells" / f"{name}.json", records)
    cost = {part: round(value, 2) for part, value in made.spent._asdict().items()}
    cost |= {"mebibytes": made.mebibytes, "edit": made.about}
    return {"cell": name} | cost | found


def _settings(config: EvaluateConfig, general: General | None) -> list[Any]:
    """What decides a cell's figures, beside its job and what it is judged by."""
    values = dataclasses.asdict(config)
    used = {"emcid": [], "uce": ["uce"], "fine-tune": ["fine_tune"]}[config.method]
    return [
        {name: values[name] for name in ("method", "keep", *used)},
        methods.names_of(config.uce) if config.method == "uce" else [],
        general.decides if general else [],
    ]
