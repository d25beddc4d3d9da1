"""`python -m studies.long_run --workdir W`: 1,000 concepts written in 1 to 1,000 rounds.

Names of the sprite world are moved onto others, as in `studies.solver_table`, whose targets
need no Stage I. `edited`: every round solves for its own concepts on the weights that the round
before left. `moving`: the same, with targets read off those weights. `told`: as `edited`, but every
round protects the keys of all earlier ones. `bank`: the pristine
weights, solved for all concepts so far, as this package does: the same whatever the rounds were.
A killed run goes on from the last measured round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import workload
from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.preservation import Protection
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.storage.files import replacing, write_atomically
from studies import panels, solver_table
from studies.panels import Line, Panel
from studies.solver_table import BLOCK, World

Way = Literal["bank", "edited", "moving", "told"]
RUNS: tuple[tuple[Way, int], ...] = (
    ("bank", 10), ("edited", 10), ("told", 10), ("moving", 10),
    ("edited", 100), ("edited", 1000), ("told", 100),
)  # fmt: skip
POINTS = (0.01, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the concepts after which a run is measured."""
OLDEST = 0.1
"""Share of the concepts, the first ones, that are followed to the end."""

HEADER = (
    "| every round starts from | rounds | written | edited | the oldest | kept | drift | sentences "
    "| empty | weights | seconds |\n" + "|---" * 11 + "|"
)
NAMES = {
    "bank": "pristine weights, bank",
    "edited": "edited weights",
    "moving": "edited, targets too",
    "told": "edited, earlier keys protected",
}


@dataclasses.dataclass
class Written:
    """A model on its way: what was added to its weights, and what is to be left alone."""

    deltas: dict[int, np.ndarray]
    kept: dict[int, np.ndarray]
    """Layer -> sum of k k^T of the concepts written so far; of `told` alone."""
    rounds: int = 0
    seconds: float = 0.0
    """Of processor time."""


def write_round(
    world: World, moments: SecondMoments, requests: Sequence[EditRequest], way: Way, now: Written
) -> None:
    """One more round: `requests` on top of what is written."""
    base = world.pipeline
    pipeline = with_text_params(base, {"text_encoder": edited_params(base, now.deltas)})
    params = pipeline.params["text_encoder"]
    memories = solver_table.targets(pipeline if way == "moving" else base, requests)
    config, protection = StageTwoConfig(), None
    if way == "told":
        config = dataclasses.replace(config, solver="ridge+preserve")
        protection = Protection(dict(now.kept), {})
    edit = stage_two.solve(
        base.encoder.model,
        params,
        memories,
        SourcePrompts(*spans.source_prompts(base.encoder.tokenizer, requests)),
        moments.lent_to(params_hash(params)),
        config,
        block=BLOCK,
        protection=protection,
    )
    for layer, delta in edit.deltas.items():
        now.deltas[layer] = now.deltas.get(layer, 0) + delta
    now.rounds += 1
    if way == "told":
        pipeline = with_text_params(base, {"text_encoder": edited_params(base, now.deltas)})
        for layer, keys in predicted_conflicts.clean_run(
            pipeline.encoder, requests, config.layers
        ).keys.items():
            now.kept[layer] = now.kept.get(layer, 0) + keys.T @ keys


def edited_params(pipeline: Pipeline, deltas: dict[int, np.ndarray]) -> dict[str, Any]:
    """The pristine text encoder with `deltas` in it."""
    edit = WeightEdit(deltas, StageTwoReport((), 0.0, 0.0))
    return stage_two.apply_edit(pipeline.params["text_encoder"], edit)


def measure(world: World, total: int, count: int, now: Written) -> dict[str, float]:
    """Shares of names and drifts after `count` of `total` concepts."""
    params = edited_params(world.pipeline, now.deltas)
    chosen, old = solver_table.spread(count), solver_table.spread(round(OLDEST * total))
    old = [i for i in old if i < count]
    found = solver_table.read(world, [*chosen, *old], params)
    hits = np.array(
        [
            name == world.requests[i].dest
            for i, name in zip([*chosen, *old], found.names, strict=True)
        ]
    )
    others, told, sentences, empty = found.drifts
    encoder = world.pipeline.params["text_encoder"]["text_model"]["encoder"]
    changes = [
        np.linalg.norm(delta) / np.linalg.norm(encoder[f"layers.{layer}"]["mlp"]["fc2"]["kernel"])
        for layer, delta in now.deltas.items()
    ]
    return {
        "edited": float(hits[: len(chosen)].mean()),
        "oldest": float(hits[len(chosen) :].mean()),
        "kept": float(np.concatenate([found.kept, found.told]).mean()),
        "drift": float(np.concatenate([others, told]).mean()),
        "sentences": float(sentences.mean()),
        "empty": float(empty.mean()),
        "weights": float(np.mean(changes)),
    }


def run(
    world: World, moments: SecondMoments, total: int, way: Way, rounds: int, workdir: Path
) -> list[dict[str, Any]]:
    """One row per measured round, those that `workdir` holds included."""
    rows_file, state_file = (workdir / f"{way}_{rounds}.{end}" for end in ("json", "npz"))
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text()) if rows_file.exists() else []
    now = load(state_file) if rows else Written({}, {})
    groups = np.array_split(np.arange(total), rounds)
    ends = np.cumsum([len(group) for group in groups])
    points = {int(ends[np.abs(ends - share * total).argmin()]) for share in POINTS}
    for number in range(now.rounds, rounds):
        count = int(ends[number])
        began = time.process_time()
        if way == "bank":
            now.rounds = number + 1
            if count not in points:
                continue
            now.deltas = {}
            write_round(world, moments, world.requests[:count], way, now)
            now.rounds = number + 1
        else:
            write_round(world, moments, [world.requests[i] for i in groups[number]], way, now)
        now.seconds += time.process_time() - began
        if count in points:
            about = {"way": way, "rounds": rounds, "written": count}
            rows.append(about | measure(world, total, count, now) | {"seconds": now.seconds})
            save(state_file, now)
            write_atomically(rows_file, json.dumps(rows, indent=1).encode())
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    shares = [f"{row[name]:.2f}" for name in ("edited", "oldest", "kept", "drift", "sentences")]
    rounds = "any" if row["way"] == "bank" else f"{row['rounds']:,}"
    tail = [f"{row['empty']:.0e}", f"{row['weights']:.2f}", f"{row['seconds']:.0f}"]
    return (
        "| " + " | ".join([NAMES[row["way"]], rounds, f"{row['written']:,}", *shares, *tail]) + " |"
    )


def curves(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What rounds cost, over the number of concepts written."""
    titles = {
        "edited": "edited names that read as their destination",
        "oldest": "edit success of the first 100 concepts",
        "kept": "names of no request that read as themselves",
        "sentences": "drift of sentences",
    }
    runs = list(dict.fromkeys((row["way"], row["rounds"]) for row in rows))
    found = []
    for field, title in titles.items():
        lines = []
        for number, (way, rounds) in enumerate(runs):
            mine = [row for row in rows if (row["way"], row["rounds"]) == (way, rounds)]
            label = NAMES[way] + ("" if way == "bank" else f", {rounds:,} rounds")
            x, y = ([row[name] for row in mine] for name in ("written", field))
            lines.append(Line(label, x, y, number, "-" if way in ("bank", "edited") else "--"))
        limits = (0, None) if field == "sentences" else (-0.03, 1.03)
        found.append(Panel(title, lines, "concepts written", y_range=limits))
    return found


def save(path: Path, now: Written) -> None:
    """Keeps a model on its way in one file."""
    parts = {"deltas": now.deltas, "kept": now.kept}
    arrays: dict[str, Any] = {
        f"{part}.{layer}": array for part, found in parts.items() for layer, array in found.items()
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, rounds=now.rounds, seconds=now.seconds, **arrays)


def load(path: Path) -> Written:
    """What `save` kept."""
    with np.load(path) as file:
        now = Written({}, {}, int(file["rounds"]), float(file["seconds"]))
        for name in file.files:
            part, _, layer = name.partition(".")
            if layer:
                getattr(now, part)[int(layer)] = file[name]
    return now


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table line by line, and draws the curves."""
    parser = argparse.ArgumentParser(prog="python -m studies.long_run", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="rows and weights so far")
    parser.add_argument("--count", type=int, default=1000, help="concepts")
    parser.add_argument("--moments", type=Path, help="a workdir's second moments")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    options = parser.parse_args(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model_folder(BUNDLED))
    world = solver_table.make_world(pipeline)
    moments = workload.moments(pipeline, 20_000, options.moments)
    print(HEADER, flush=True)
    rows = []
    for way, rounds in RUNS:
        rows += run(world, moments, options.count, way, rounds, options.workdir)
    if options.plot:
        panels.draw(curves(rows), options.plot, across=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
