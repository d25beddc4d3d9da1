"""`python -m studies.solver_table`: edit strength against hold-out damage, without an image.

Names of the sprite world are moved onto others and every solver is judged in text space, so the
table costs minutes where drawing costs hours. Targets are synthetic: the destination's own state
at block L. They are longer than Stage I's offsets, which makes the curve steeper, not different in
kind. What counts is what the UNet reads, with a template that no edit used.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import workload
from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES
from emcid_jax.config import StageOneConfig, StageTwoConfig
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.catalogue import catalogue
from studies import solver_curves

BLOCK = StageOneConfig().layer
COUNTS = (1, 10, 100, 300, 1000, 2000)
LAMBDAS = (4000.0, 1000.0)
HOLDOUT = 50
"""Names of each kind that are never edited and no destination; every other one is protected."""
JUDGED = 200
"""Most edited names that are judged."""
SENTENCES = 50
BATCH = 128


class Kind(NamedTuple):
    """Objects or artists."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    unseen: str
    """The template of judging."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What is edited, what is kept and how to tell."""

    pipeline: Pipeline
    requests: list[EditRequest]
    kinds: list[Kind]
    """Of every request."""
    protected: list[str]
    others: list[str]
    """Prompts of the held-out names."""
    told: list[str]
    """Prompts of the names that protecting solvers protect."""
    sentences: list[str]
    clean: list[np.ndarray]
    """States of `others`, `told`, `sentences` and the empty prompt in the base model."""
    galleries: Mapping[str, np.ndarray]
    """Unseen template -> pooled clean states of all names of the kind."""


class Figures(NamedTuple):
    """Shares are of names; drifts are |change| / |state| of the final text states."""

    edited: float
    """Share of edited names whose state is, of all names' clean states, nearest the destination."""
    kept: float
    """Share of unprotected hold-out names that are still nearest to themselves."""
    protected: float
    """The same of the protected ones."""
    drift: float
    drift_protected: float
    drift_sentences: float
    drift_empty: float
    reached: float
    """1 - |z - h^L| after over before: how far Stage II came at its own prompts."""


HEADER = (
    "| n | solver | edited | kept | kept, protected | drift | protected | sentences | empty "
    "| reached |\n" + "|---" * 10 + "|"
)


def variants(names: Sequence[str]) -> dict[str, StageTwoConfig]:
    """The rows of the table for every count."""
    base = StageTwoConfig()
    rows: dict[str, StageTwoConfig] = {}
    for weight in LAMBDAS:
        plain = dataclasses.replace(base, preservation_weight=weight)
        rows[f"ridge, lambda {weight:g}"] = plain
        rows[f"ridge+preserve, lambda {weight:g}"] = dataclasses.replace(
            plain, solver="ridge+preserve", preserve=tuple(names)
        )
        rows[f"nullspace, lambda {weight:g}"] = dataclasses.replace(plain, solver="nullspace")
    return rows


def make_world(pipeline: Pipeline, seed: int = 0) -> World:
    """3 objects for every 7 artists as long as there are objects; destinations are edited too."""
    rng = np.random.default_rng(seed)
    things = catalogue()
    objects = Kind(things.objects, OBJECT_TEMPLATES, "a picture of a {}")
    artists = Kind(things.artists, ARTIST_TEMPLATES, "picture by {}")
    requests: list[tuple[float, EditRequest, Kind]] = []
    held: list[tuple[str, str]] = []
    for kind, rate in ((objects, 3), (artists, 7)):
        names = [kind.names[i] for i in rng.permutation(len(kind.names))]
        held += [(name, kind.unseen.format(name)) for name in names[:HOLDOUT]]
        edited = names[HOLDOUT:]
        for i, name in enumerate(edited):
            dest = edited[(i + len(edited) // 2) % len(edited)]
            requests.append((i / rate, EditRequest(name, dest, kind.templates), kind))
    requests.sort(key=lambda item: item[0])
    galleries = {
        kind.unseen: states(pipeline, None, [kind.unseen.format(n) for n in kind.names])[0]
        for kind in (objects, artists)
    }
    others, told = ([prompt for _, prompt in held[i::2]] for i in (1, 0))
    sentences = workload.captions(SENTENCES)
    return World(
        pipeline,
        [request for _, request, _ in requests],
        [kind for _, _, kind in requests],
        protected=[name for name, _ in held[::2]],
        others=others,
        told=told,
        sentences=sentences,
        clean=states(pipeline, None, [*others, *told, *sentences, ""])[1],
        galleries=galleries,
    )


def states(
    pipeline: Pipeline, params: Any, prompts: Sequence[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pooled states, and those of all tokens up to the end token; `params` None: the base's."""
    params = pipeline.params["text_encoder"] if params is None else params
    ids = tokenize(pipeline.encoder.tokenizer, list(prompts))
    ends = (ids == pipeline.encoder.tokenizer.eos_token_id).argmax(axis=1)
    order = np.argsort(ends, kind="stable")
    rows: list[np.ndarray] = [np.empty(0)] * len(ids)
    for part in (order[i : i + BATCH] for i in range(0, len(ids), BATCH)):
        width = -(-(ends[part].max() + 1) // 4) * 4  # Attention is causal: the rest is not needed.
        padded = np.pad(ids[part, :width], ((0, BATCH - len(part)), (0, 0)), mode="edge")
        last = np.asarray(_encode(pipeline.encoder.model, params, padded)[0])
        for row, found in zip(part, last, strict=False):
            rows[row] = found[: ends[row] + 1]
    return np.array([row[-1] for row in rows]), rows


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Any, params: Any, ids: Any) -> tuple[Any, Any]:
    out = model.apply({"params": params}, ids)
    return out.last_hidden_state, out.hidden[BLOCK]


def targets(pipeline: Pipeline, requests: Sequence[EditRequest]) -> np.ndarray:
    """The destination's own state at block L, in prompt 0."""
    rectangle = spans.destination_prompts(pipeline.encoder.tokenizer, requests)
    ids, positions = rectangle.ids[:, 0], rectangle.positions[:, 0]
    width = positions.max() + 1
    padded = np.pad(ids[:, :width], ((0, -len(ids) % BATCH), (0, 0)), mode="edge")
    params = pipeline.params["text_encoder"]
    rows = [
        np.asarray(_encode(pipeline.encoder.model, params, padded[i : i + BATCH])[1])
        for i in range(0, len(padded), BATCH)
    ]
    return np.concatenate(rows)[np.arange(len(ids)), positions]


class Reading(NamedTuple):
    """What an encoder makes of the prompts of judging; drifts are |change| / |state| per prompt."""

    names: tuple[str, ...]
    """What every asked name reads as, of all names of its kind."""
    kept: np.ndarray
    """Whether each prompt of `World.others` still reads as its name."""
    told: np.ndarray
    """The same of `World.told`."""
    drifts: tuple[np.ndarray, ...]
    """Of `others`, `told`, `sentences` and the empty prompt."""


def read(world: World, chosen: Sequence[int], params: Any) -> Reading:
    """The sources of the `chosen` requests and all unedited names, with an encoder's `params`."""
    kinds = {kind.unseen: kind for kind in world.kinds}.values()
    asked = [world.kinds[i].unseen.format(world.requests[i].source) for i in chosen]
    groups = (asked, world.others, world.told, world.sentences, [""])
    prompts = [prompt for group in groups for prompt in group]
    edges = np.cumsum([0, *map(len, groups)]).tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    pooled, after = states(world.pipeline, params, prompts)
    moved = np.array(
        [
            np.linalg.norm(now - was) / np.linalg.norm(was)
            for now, was in zip(after[len(asked) :], world.clean, strict=True)
        ]
    )

    def nearest(row: int, kind: Kind) -> str:
        gallery = world.galleries[kind.unseen]
        return kind.names[int(np.square(gallery - pooled[row]).sum(axis=1).argmin())]

    def intact(part: slice) -> np.ndarray:
        found = [
            any(kind.unseen.format(nearest(row, kind)) == prompts[row] for kind in kinds)
            for row in range(part.start, part.stop)
        ]
        return np.array(found)

    drifts = [moved[p.start - len(asked) : p.stop - len(asked)] for p in parts[1:]]
    names = tuple(nearest(row, world.kinds[i]) for row, i in enumerate(chosen))
    return Reading(names, intact(parts[1]), intact(parts[2]), tuple(drifts))


def spread(count: int, most: int = JUDGED) -> list[int]:
    """At most `most` of the first `count` requests, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def judge(world: World, count: int, edit: WeightEdit) -> Figures:
    """All figures of one edit, from one pass over all prompts of judging."""
    chosen = spread(count)
    params = stage_two.apply_edit(world.pipeline.params["text_encoder"], edit)
    found, report = read(world, chosen, params), edit.report
    hits = [name == world.requests[i].dest for i, name in zip(chosen, found.names, strict=True)]
    drift, told, sentences, empty = (float(drift.mean()) for drift in found.drifts)
    return Figures(
        float(np.mean(hits)),
        float(found.kept.mean()),
        float(found.told.mean()),
        drift,
        told,
        sentences,
        empty,
        1 - report.distance_after / report.distance_before,
    )


def line(count: int, name: str, figures: Figures) -> str:
    """A row of the table."""
    cells = [f"{value:.2f}" for value in figures]
    cells[6] = f"{figures.drift_empty:.0e}"
    return f"| {count} | {name} | " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table line by line and writes it as JSON after every line."""
    options = _parse(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    world = make_world(pipeline)
    moments = workload.moments(pipeline, options.captions, options.moments)
    settings = variants(world.protected)
    # Neither lambda nor the requests beyond their templates decide what is protected.
    protection = {
        config.solver: preservation.protect(pipeline.encoder, world.requests, config)
        for config in settings.values()
        if config.preservation_weight == LAMBDAS[0]
    }
    rows: list[dict[str, Any]] = []
    if options.output and options.output.exists():
        rows = json.loads(options.output.read_text())
    done = {(row["n"], row["solver"]): Figures(*list(row.values())[2:]) for row in rows}
    print(HEADER, flush=True)
    for count in options.counts:
        requests = world.requests[:count]
        prompts = SourcePrompts(*spans.source_prompts(pipeline.encoder.tokenizer, requests))
        memories = targets(pipeline, requests)
        for name, config in settings.items():
            if (count, name) in done:
                print(line(count, name, done[count, name]), flush=True)
                continue
            edit = stage_two.solve(
                pipeline.encoder.model,
                pipeline.params["text_encoder"],
                memories,
                prompts,
                moments,
                config,
                block=BLOCK,
                protection=protection[config.solver],
            )
            figures = judge(world, count, edit)
            print(line(count, name, figures), flush=True)
            rows.append({"n": count, "solver": name, **figures._asdict()})
            if options.output:
                options.output.write_text(json.dumps(rows, indent=1))
    if options.plot:
        solver_curves.draw(rows, options.plot)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.solver_table", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of edits")
    parser.add_argument("--captions", type=int, default=5000, help="of the second moments")
    parser.add_argument("--moments", type=Path, help="read them from a workdir's file instead")
    parser.add_argument("--output", type=Path, help="JSON file; rows in it are not measured again")
    parser.add_argument("--plot", type=Path, help="PNG of the curves at lambda 4,000")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
