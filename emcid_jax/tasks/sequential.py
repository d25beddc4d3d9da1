"""Task `sequential`: the same requests written in k rounds, in two ways.

`edited`: every round starts from the weights that the round before left, memories included, as with
tools that hand back a model; second moments stay those of the pristine model. `bank`: every round
starts from the pristine weights and solves for all requests so far, as this package does. Measured
in text space after up to `CHECKPOINTS` rounds; rows that `sequential.json` holds of the same
settings and inputs are not measured again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from emcid_jax.config import Count, EditConfig
from emcid_jax.editing.bank.memories import model_hashes
from emcid_jax.editing.encoder.whole_prompts import Prompts, end_features, text_changes
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.evaluation.statistics.retention import retention
from emcid_jax.evaluation.text_space.measure import names_any
from emcid_jax.models.text.encoder import FIRST, TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import edit_job
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.find_memories import read_prompts
from emcid_jax.workflow.find_moments import (
    edited_layers,
    find_other_captions,
    moments_of,
    require_linear,
)
from emcid_jax.workflow.inputs import require_one_encoder
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table, markdown
from emcid_jax.workflow.workdir import Run, running

Way = Literal["edited", "bank"]
CHECKPOINTS = 10
"""Most rounds of a row that are measured, the last one included."""


@dataclasses.dataclass(frozen=True)
class SequentialConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """Model, requests and EMCID's settings."""
    task: str = "sequential"
    """Which task of main runs."""
    rounds: tuple[Count, ...] = (1, 10, 100)
    """Numbers of rounds to compare; the requests are split evenly, in the file's order."""
    ways: tuple[Way, ...] = ("edited", "bank")
    """From which weights a round starts."""
    captions: Count = 500
    """Captions, of the source of `moments` with another seed, whose features should stay."""

    def check(self) -> None:
        """UserError for a solver that the task cannot take."""
        require_linear(self.base.stage_two, "config.base.stage_two")


Config = SequentialConfig
UNREAD = (
    "base.model.export_dtype",
    "base.run.profile",
    "base.debias",
    "base.evaluation",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = (
    "sequential.json",
    "sequential.md",
    "metrics.jsonl",
    "bank",
    "moments",
    "evaluation",
    "images",
)
"""What the task writes in its workdir."""
LOOK = "sequential.md"
"""Which of it to open first."""


def run(config: SequentialConfig, workdir: Path) -> None:
    """Fills `workdir/sequential.json` and `workdir/sequential.md`."""
    folders.require_writable(workdir, WRITES, config)
    unjudged = dataclasses.replace(config.base.evaluation, enabled=False)
    job = edit_job.prepare(dataclasses.replace(config.base, evaluation=unjudged))
    require_one_encoder(job.pipeline, config.task)
    if max(config.rounds) > len(job.requests):
        raise UserError(
            f"config.rounds has {max(config.rounds)}, but there are {len(job.requests)} requests; "
            "give at most as many rounds"
        )
    with running(config.base.run, workdir, WRITES) as run:
        table = Table(workdir / "sequential.json")
        captions = _captions(job, config)
        gauge = functools.cache(functools.partial(_Gauge.of, job, captions))
        layers = edited_layers(config.base.stage_two, job.sites)
        moments = moments_of(edit_job.find_moments_of(job, run, layers)[FIRST])

        def cell(rounds: int, way: Way) -> Cell:
            # The first round of both ways starts from the pristine weights, a bank's every round.
            of_all = functools.partial(edit_job.find_memories_of, job)
            return Cell(
                {"rounds": rounds, "way": way},
                [job.decides, captions.tolist()],
                lambda run: _row(job, moments, gauge(), rounds, way, run),
                cost=len(job.requests) if way == "edited" else rounds,
                needs=way == "bank" or rounds == 1,
                find=of_all if way == "bank" or rounds == 1 else None,
            )

        def show(rows: list[dict[str, Any]]) -> None:
            write_atomically(workdir / "sequential.md", as_markdown(rows).encode())

        asked = itertools.product(sorted(config.rounds), config.ways)
        measured([cell(*one) for one in asked], table, run, "Cells", show)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per number of rounds and way."""
    head = ["rounds", "every round starts from", "reached at least half-way"]
    head += ["distance to destination", "retention", "drift"]
    names = {"edited": "the edited weights", "bank": "the pristine weights, whole bank"}
    figures = ("reached", "left", "retention", "drift")
    return markdown(
        head,
        (
            [str(row["rounds"]), names[row["way"]], *(f"{row[name]:.3f}" for name in figures)]
            for row in rows
        ),
    )


def _row(
    job: Job,
    moments: SecondMoments,
    gauge: _Gauge,
    rounds: int,
    way: Way,
    run: Run,
) -> dict[str, Any]:
    """All rounds, and what they leave after the measured ones."""
    groups = [part.tolist() for part in np.array_split(np.arange(len(job.requests)), rounds)]
    measured = np.unique(np.linspace(1, rounds, min(rounds, CHECKPOINTS)).round()).astype(int)
    pipeline, left, drift = job.pipeline, [], []
    for number in range(1, rounds + 1):
        if way == "edited":
            pipeline = _written(_part(job, pipeline, groups[number - 1]), moments, run)
        elif number in measured:
            rows = [row for group in groups[:number] for row in group]
            pipeline = _written(_part(job, job.pipeline, rows), moments, run)
        if number in measured:
            left.append(gauge.left(pipeline))
            drift.append(gauge.drift(pipeline))
    written = np.array(
        [np.searchsorted(measured, 1 + i) for i, group in enumerate(groups) for _ in group]
    )
    kept = retention(np.clip(1 - np.array(left), 0, 1), written)
    finite = kept[np.isfinite(kept)]
    return {
        "measured": measured.tolist(),
        "reached": float((left[-1] < 0.5).mean()),
        "left": float(np.median(left[-1])),
        "retention": float(finite[-1]) if finite.size else 0.0,
        "drift": float(drift[-1]),
        "drift_curve": [float(value) for value in drift],
        "left_curve": [float(np.median(values[written <= i])) for i, values in enumerate(left)],
        "retention_curve": [None if np.isnan(value) else float(value) for value in kept],
    }


def _part(job: Job, pipeline: Pipeline, rows: list[int]) -> Job:
    """The job of some requests on a model."""
    requests = [job.requests[row] for row in rows]
    prompts = read_prompts(pipeline, requests, job.config.stage_one)
    model = job.model if pipeline is job.pipeline else model_hashes(pipeline)
    return dataclasses.replace(
        job, requests=requests, pipeline=pipeline, prompts=prompts, model=model
    )


def _written(job: Job, moments: SecondMoments, run: Run) -> Pipeline:
    """The job's model with the job's requests in it."""
    found = edit_job.find_memories_of(job, run)
    # Those of the pristine model, of which an edited one knows nothing more.
    lent = moments.lent_to(params_hash(job.pipeline.encoder.params))
    solved = edit_job.solve(job, found, {FIRST: lent})
    return stage_two.with_edit(job.pipeline, solved)


def _captions(job: Job, config: SequentialConfig) -> np.ndarray:
    """Token ids of captions that name no source."""
    corpus = np.array(find_other_captions(config.base.moments, config.captions))
    named = names_any(corpus.tolist(), [request.source for request in job.requests])
    return tokenize(job.pipeline.encoder.tokenizer, corpus[~named].tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class _Gauge:
    """What is measured of every model, in final features of the text encoder."""

    base: TextEncoder
    ids: np.ndarray
    """Every request's first prompt."""
    before: Float64[np.ndarray, "request dim"]
    wanted: Float64[np.ndarray, "request dim"]
    captions: np.ndarray
    """Token ids of captions that name no source."""

    @classmethod
    def of(cls, job: Job, captions: np.ndarray) -> _Gauge:
        source, dest = (part.ids[:, 0] for part in job.prompts)
        base = job.pipeline.encoder
        return cls(
            base,
            source,
            end_features(base, base.params, source),
            end_features(base, base.params, dest),
            captions,
        )

    def left(self, pipeline: Pipeline) -> Float64[np.ndarray, " request"]:
        """Distance of each source to its destination at the end token, over that before."""
        now = end_features(self.base, pipeline.encoder.params, self.ids)
        apart, first = (
            np.linalg.norm(self.wanted - states, axis=1) for states in (now, self.before)
        )
        return apart / first

    def drift(self, pipeline: Pipeline) -> float:
        """Median of |F' - F| / |F| over the captions."""
        before, after = self.base.params, pipeline.encoder.params
        captions = [Prompts.whole(self.captions)]
        (change,) = text_changes(self.base, before, after, captions, 0)
        return float(np.median(change.drift))
