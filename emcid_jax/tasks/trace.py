# ruff: noqa: RUF009 (sections of settings are frozen)
"""Task `trace`: which blocks of the text encoder hold a name, by causal tracing (docs/tracing.md).

Rows that `trace.json` holds of the same settings and inputs are not measured again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from emcid_jax.concepts.templates import OBJECT_TEMPLATES, slot_count
from emcid_jax.config import Count, CountOrZero, EncoderName, ModelConfig, Positive, RunConfig, Seed
from emcid_jax.editing.bank.memories import model_hashes
from emcid_jax.editing.encoder.causal_tracing import Site
from emcid_jax.evaluation.text_space import trace_runs
from emcid_jax.evaluation.text_space.trace_prompts import read_subjects, with_noise, with_partners
from emcid_jax.evaluation.text_space.trace_scores import Recovery, whole_windows
from emcid_jax.reporting.plots.heat_maps import heat_maps
from emcid_jax.reporting.plots.trace_maps import MEASURES, panels
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.inputs import encoder_of, names_to_keep
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.sweep import Cell, measured
from emcid_jax.workflow.table import Table, estimate, markdown
from emcid_jax.workflow.workdir import Run, running


@dataclasses.dataclass(frozen=True)
class TraceConfig:
    """Settings of this task."""

    task: Literal["trace"] = "trace"
    """Which task of main runs."""
    encoder: EncoderName = "text_encoder"
    """Which text encoder is looked at, of models with two."""
    names: tuple[str, ...] = ()
    """Names to trace."""
    names_path: str = ""
    """File of more names, one a line; `sprites`: every object of the sprite world."""
    count: CountOrZero = 100
    """So many of the names, picked by `seed`; 0: all."""
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    """Templates, each with one {}, that every name is put in."""
    corruption: Literal["noise", "swap"] = "noise"
    """`noise` on the embeddings of all subject tokens; `swap`: those of another name with as many
    tokens (names without such another are left out)."""
    noise: Positive = 3.0
    """`noise`: its size, in standard deviations of the subjects' token embeddings."""
    sites: tuple[Site, ...] = get_args(Site)
    """What is put back: whole blocks' outputs, or what attention or MLP add."""
    windows: tuple[Count, ...] = (1, 3, 5, 10)
    """Numbers of neighbouring blocks where it is put back."""
    seed: Seed = 0
    """Picks names and partners, and draws the noise."""
    model: ModelConfig = ModelConfig()
    run: RunConfig = RunConfig()

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if not (self.names or self.names_path):
            raise UserError("config.names and names_path are empty; give at least two names")
        for i, template in enumerate(self.templates):
            if slot_count(template) != 1:
                raise UserError(f"config.templates[{i}] is {template!r}; a template holds one {{}}")
        for field in ("templates", "sites", "windows"):
            if not getattr(self, field):
                raise UserError(f"config.{field} is empty; leave it out for the default")


Config = TraceConfig
UNREAD = (
    "model.export_dtype",
    "run.save_every",
    "run.profile",
    "run.save_every_batches",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("trace.json", "trace.md", "trace.png", "metrics.jsonl")
"""What the task writes in its workdir."""
LOOK = "trace.png"
"""Which of it to open first."""


def run(config: TraceConfig, workdir: Path) -> None:
    """Fills `workdir/trace.json`, `trace.md` and `trace.png`.

    UserError, before anything is written, if settings, names or model are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    names = _chosen(config)
    pipeline = open_model(config.model, config.run.weight_shards)
    encoder = encoder_of(pipeline, config.encoder)
    blocks = encoder.model.config.num_hidden_layers
    if max(config.windows) > blocks:
        raise UserError(
            f"config.windows has {max(config.windows)}, but the text encoder has {blocks} blocks"
        )
    subjects = read_subjects(encoder, names, config.templates)
    swapped = None
    if config.corruption == "swap":
        subjects, swapped = with_partners(subjects, config.seed)
    with running(config.run, workdir, WRITES) as run:
        corrupt = functools.partial(with_noise, scale=config.noise, seed=config.seed)
        corruption = corrupt if swapped is None else swapped
        with parallel.alone():  # Every host measures rows by itself.
            traced = trace_runs.prepare(encoder, subjects, corruption)
        about = {"names": list(subjects.names), "corrupted": _plain(traced.nothing)}
        table = Table(workdir / "trace.json", blocks=blocks, **about)
        decides = [model_hashes(pipeline), subjects.ids.tolist(), about, _settings(config)]
        asked = itertools.product(config.sites, whole_windows(blocks, config.windows))
        cells = [
            Cell(
                {"site": site, "first": first, "size": size},
                decides,
                functools.partial(_measure, traced, site, range(first, first + size)),
            )
            for site, (first, size) in asked
        ]
        if not measured(cells, table, run, "Tracing"):
            return
        write_atomically(workdir / "trace.md", as_markdown(table.rows).encode())
        maps = heat_maps(panels(table.rows, blocks), len(MEASURES))
        write_atomically(workdir / "trace.png", maps)


def _measure(traced: trace_runs.Traced, site: Site, blocks: range, run: Run) -> dict[str, Any]:
    """A row's figures."""
    with run.log.timed("trace"):
        return _plain(trace_runs.measure(traced, site, blocks))


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per site, size and first block, with intervals."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        last = row["first"] + row["size"] - 1
        blocks = str(last) if row["size"] == 1 else f"{row['first']}-{last}"
        return [row["site"], blocks, *(estimate(row[measure]) for measure in MEASURES)]

    return markdown(["restored", "blocks", *MEASURES.values()], map(cells, rows))


def _chosen(config: TraceConfig) -> list[str]:
    names = names_to_keep(config.names, config.names_path, "config.names_path")
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise UserError(f"config.names and names_path give {names}; give at least two names")
    if 0 < config.count < len(names):
        picked = np.random.default_rng(config.seed).permutation(len(names))[: config.count]
        names = [names[i] for i in np.sort(picked)]
    return names


def _settings(config: TraceConfig) -> dict[str, Any]:
    """What decides the figures, beside names and model."""
    return {name: getattr(config, name) for name in ("corruption", "noise", "seed")}


def _plain(found: Recovery) -> dict[str, Any]:
    return {name: estimate._asdict() for name, estimate in found._asdict().items()}
