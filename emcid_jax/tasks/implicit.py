"""Task `implicit`: TIMED and RoAD, one edit at a time, each from the pristine weights.

Every row of the table is edited once per seed. The edited and the base model draw the source, the
related and the unrelated prompts; a CLIP model chooses between the old and the new description of
each picture. Beside them the *oracle*: the base model with the new descriptions as prompts.
Pairs of row and seed that `implicit.json` holds of the same settings and inputs are not measured
again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from emcid_jax.concepts.readers.implicit import Choice, ImplicitEdit, read_implicit
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.config import Count, EditConfig
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.editing.bank.memories import Memory, hash_of, model_hashes
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.evaluation.benchmarks.implicit import CONFIDENT, choice, implicit_scores
from emcid_jax.evaluation.drawing.batches import drawing
from emcid_jax.evaluation.drawing.draw import Generate, drawn_seeds
from emcid_jax.evaluation.drawing.kept_pictures import slug
from emcid_jax.evaluation.drawing.png import png
from emcid_jax.evaluation.judges.clip import Clip, find_clip
from emcid_jax.evaluation.statistics.clip_score import clip_scores
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import edit_job
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.find_memories import read_prompts
from emcid_jax.workflow.find_moments import (
    Measured,
    edited_layers,
    find_captions,
    require_linear,
)
from emcid_jax.workflow.inputs import require_blocks
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table, markdown
from emcid_jax.workflow.workdir import Run, running

MODELS = ("edited", "base", "oracle")


@dataclasses.dataclass(frozen=True)
class ImplicitConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """Model, table (`requests.path`), EMCID's settings; of `evaluation` sampler and batch."""
    task: str = "implicit"
    """Which task of main runs."""
    seeds: Count = 4
    """Edits per row, each with images of its own; figures are means, spreads are over seeds."""
    clip: str = ""
    """Folder of the CLIP model that judges; empty: the model's own `image_tower`."""

    def check(self) -> None:
        """UserError for a solver that the task cannot take."""
        require_linear(self.base.stage_two, "config.base.stage_two")


Config = ImplicitConfig
UNREAD = (
    "base.requests.forms",
    "base.model.export_dtype",
    "base.run.profile",
    "base.debias",
    "base.evaluation.enabled",
    "base.evaluation.prompts_per_request",
    "base.evaluation.holdout",
    "base.evaluation.aliases",
    "base.evaluation.holdout_path",
    "base.evaluation.debias_seeds",
    "base.evaluation.debias_images",
    "base.evaluation.judge",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("implicit.json", "implicit.md", "metrics.jsonl", "bank", "moments", "images")
"""What the task writes in its workdir."""
LOOK = "implicit.md"
"""Which of it to open first."""


def run(config: ImplicitConfig, workdir: Path) -> None:
    """Fills `workdir/implicit.json` and `workdir/implicit.md`, and `images` with the first seed's.

    UserError, before anything is written, if table, model, judge or settings are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    edits = read_implicit(Path(config.base.requests.path))
    edits = edits[: config.base.requests.count or None]
    job = _prepare(edits, config)
    clip = find_clip(config.clip, job.pipeline.folder, "config.clip")
    with running(config.base.run, workdir, WRITES) as run:
        table = Table(workdir / "implicit.json")
        layers = edited_layers(config.base.stage_two, job.sites)
        moments = edit_job.find_moments_of(job, run, layers)
        memories = edit_job.find_memories_of(job, run)
        bench = _Bench(job, moments, clip)
        cells = []
        for place, memory in enumerate(memories):
            seed, number = divmod(place, len(edits))
            one = edits[number]
            measure = functools.partial(bench.measure, one, number, seed, place, memory)
            decides = [one.choices, one.dest, _settings(job), clip.fingerprint]
            cells.append(Cell({"row": number, "seed": seed}, decides, measure, len(one.choices)))
        if not measured(cells, table, run, "Edits", files=["images/*.png"]):
            return
        count = len(edits)
        asked = [table.rows[seed * count :][:count] for seed in range(config.seeds)]
        scores = score(asked)
        table.write(scores=scores)
        text = as_markdown(scores) + "\n" + row_table(asked)
        write_atomically(workdir / "implicit.md", text.encode())


@dataclasses.dataclass(frozen=True)
class Found:
    """P(new description) of every picture of a row and seed: source, related, unrelated."""

    source: str
    dest: str
    edited: tuple[list[float], list[float], list[float]]
    base: tuple[list[float], list[float], list[float]]
    oracle: tuple[list[float], list[float], list[float]]
    """The base model on the new descriptions; unrelated as `base`."""


def score(rows: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The benchmark's figures per model, from rows [seed][edit] of `Found`; JSON values only."""
    found = {}
    for model in MODELS:
        parts = [np.array([[row[model][i] for row in one] for one in rows]) for i in range(3)]
        scores = implicit_scores(parts[0][..., 0], parts[1], parts[2])
        found[model] = {
            name: value
            if name == "f1"
            else [part._asdict() for part in value]
            if name == "confident"
            else value._asdict()
            for name, value in scores._asdict().items()
        }
    return found | {"edits": len(rows[0]), "seeds": len(rows)}


def as_markdown(scores: dict[str, Any]) -> str:
    """Markdown: a line per model; +- is the standard deviation over seeds."""
    above = [f"generality, P > {least}" for least in CONFIDENT]
    head = ["model", "efficacy", "generality", *above, "specificity", "F1"]
    rows = []
    for model in MODELS:
        one = scores[model]
        parts = [one["efficacy"], one["generality"], *one["confident"], one["specificity"]]
        cells = [f"{part['mean']:.3f} ± {part['std']:.3f}" for part in parts]
        rows.append([model, *cells, f"{one['f1']:.3f}"])
    return markdown(head, rows)


def row_table(rows: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Markdown: a line per edit, edited model and in brackets the oracle, means over seeds."""

    def share(edits: Sequence[dict[str, Any]], model: str, part: int) -> str:
        """How often the right description is chosen."""
        values = np.array([row[model][part] for row in edits], np.float64)
        return f"{(values < 0.5 if part == 2 else values > 0.5).mean():.2f}"

    def cells(edits: Sequence[dict[str, Any]]) -> list[str]:
        parts = [[share(edits, one, part) for one in ("edited", "oracle")] for part in range(3)]
        return [edits[0]["source"], edits[0]["dest"], *(f"{a} ({b})" for a, b in parts)]

    head = ["source", "destination", "efficacy", "generality", "specificity"]
    return markdown(head, map(cells, zip(*rows, strict=True)))


def _prepare(edits: Sequence[ImplicitEdit], config: ImplicitConfig) -> Job:
    """A job whose requests are the table's, once per seed; rows may contradict each other."""
    base = config.base
    templates = base.requests.templates or OBJECT_TEMPLATES
    requests = [
        EditRequest(
            one.source, one.dest, templates, seed=seed, origin=f"{base.requests.path}:{one.line}"
        )
        for seed in range(config.seeds)
        for one in edits
    ]
    captions = find_captions(base.moments)
    pipeline = open_model(base.model, base.run.weight_shards)
    make_sampler(pipeline.scheduler_config, base.evaluation.steps)  # Refuses before any work.
    require_blocks(base, pipeline)
    prompts = read_prompts(pipeline, requests, base.stage_one)
    return Job(base, requests, pipeline, prompts, captions, model_hashes(pipeline), None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Bench:
    """What every row needs."""

    job: Job
    moments: Mapping[str, Measured]
    clip: Clip

    def measure(
        self, asked: ImplicitEdit, number: int, seed: int, place: int, memory: Memory, run: Run
    ) -> dict[str, Any]:
        """One row by one seed: writes, draws, judges.

        `images` gets the source's picture of the first seed, before and after.
        """
        with run.log.timed("row", row=number, seed=seed):
            return dataclasses.asdict(self._found(asked, number, seed, place, memory, run))

    def _found(
        self, asked: ImplicitEdit, number: int, seed: int, place: int, memory: Memory, run: Run
    ) -> Found:
        base, count = self.job.pipeline, 1 + len(asked.related)
        seeds = drawn_seeds(asked.source, seed, len(asked.choices))
        prompts = [one.prompt for one in asked.choices]
        wanted = [one.new for one in asked.choices[:count]]
        before = self._draw(base, prompts + wanted, seeds + seeds[:count], run.mesh)
        after = self._draw(self._edited(place, memory), prompts, seeds, run.mesh)
        if seed == 0:
            for side, images in (("before", before), ("after", after)):
                name = f"{number + 1:03d}-{slug(asked.source)}-{side}.png"
                write_atomically(run.workdir / "images" / name, png(images[0]))
        oracle = np.concatenate([before[len(prompts) :], before[count : len(prompts)]])
        sides = (after, before[: len(prompts)], oracle)
        return Found(
            asked.source,
            asked.dest,
            *(_split(self._judge(asked.choices, side), count) for side in sides),
        )

    def _edited(self, place: int, memory: Memory) -> Pipeline:
        """The pristine model with one request in it."""
        requests = [self.job.requests[place]]
        prompts = read_prompts(self.job.pipeline, requests, self.job.config.stage_one)
        job = dataclasses.replace(self.job, requests=requests, prompts=prompts)
        return stage_two.with_edit(job.pipeline, edit_job.solve(job, [memory], self.moments))

    def _draw(
        self, pipeline: Pipeline, prompts: list[str], seeds: list[int], mesh: Mesh
    ) -> np.ndarray:
        config = self.job.config.evaluation
        batch = parallel.even_chunk(len(prompts), config.batch)
        draw: Generate = drawing(pipeline, config, batch, mesh)
        return np.concatenate(
            [
                draw(prompts[start : start + batch], seeds[start : start + batch])
                for start in range(0, len(prompts), batch)
            ]
        )

    def _judge(self, choices: Sequence[Choice], images: np.ndarray) -> np.ndarray:
        """P(new description) picture by picture."""
        vectors = self.clip.images(images)
        old, new = (
            clip_scores(vectors, self.clip.embed_texts([getattr(one, side) for one in choices]))
            for side in ("old", "new")
        )
        return choice(old, new)


def _split(values: np.ndarray, count: int) -> tuple[list[float], list[float], list[float]]:
    """Of the source, of the related and of the unrelated prompts."""
    found = values.tolist()
    return found[:1], found[1:count], found[count:]


def _settings(job: Job) -> dict[str, Any]:
    """What decides a row's figures, beside its texts and the judge."""
    values = dataclasses.asdict(job.config)
    kept = {name: values[name] for name in ("stage_one", "stage_two", "moments")}
    return kept | {
        "templates": list(job.requests[0].templates),
        "sampler": [job.config.evaluation.steps, job.config.evaluation.guidance],
        "model": job.model,
        "captions": hash_of(job.captions),
    }
