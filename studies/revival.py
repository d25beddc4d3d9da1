"""`python -m studies.revival --workdir W`: what benign fine-tuning does to edits.

1,000 names of the sprite world are moved onto others (`studies.solver_table`); then the text
encoder, edited or pristine, learns `NEW` invented names, which shall read as objects that no edit
knows: Adam on all weights, squared error of the final features at the end token. `prior` mixes in
as many captions of other names, to read as before, as DreamBooth does. Rows hold what every
`MEASURED` step left of edited and of untouched names. What the workdir holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import workload
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize, with_text_params
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.storage.files import write_atomically
from studies import long_run, panels, solver_table
from studies.long_run import Written
from studies.panels import Line, Panel
from studies.solver_table import World

EDITS = 1000
"""Most edits; untouched names are untouched by all of them."""
NEW = 50
JUDGED = 200
BATCH = 16
TOKENS = 12
MEASURED = (0, 10, 25, 50, 100)
IMAGES = 50
"""Objects of each kind that are drawn."""
RUNS = (
    (1000, 1e-5, False), (1000, 1e-4, False), (1000, 1e-5, True),
    (100, 1e-5, False), (0, 1e-5, False), (0, 1e-4, False),
)  # fmt: skip
"""Edits that were written, learning rate, whether with prior."""
DRAWN = (1000, 1e-4, False)
HEADER = (
    "| written | rate | prior | step | edits | back | kept | edits moved | kept moved | learned "
    "| undone |\n" + "|---" * 11 + "|"
)


class Names(NamedTuple):
    """Who is watched, as (what a prompt says, what it should read as)."""

    edited: list[int]
    """Requests that are written and judged."""
    kept: list[int]
    """Requests that are not written: untouched names."""
    new: list[tuple[str, str]]
    """Invented name, object."""
    prior: list[str]
    """Objects that are neither edited nor judged."""


class Data(NamedTuple):
    """Captions to learn."""

    ids: np.ndarray
    wanted: np.ndarray
    """Final features at the end token."""


def choose_names(world: World, count: int) -> Names:
    """Of the first `count` edits and untouched ones; new names for objects that no edit knows."""
    kept = [EDITS + i for i in solver_table.spread(len(world.requests) - EDITS, JUDGED)]
    known = {request.dest for request in world.requests[:EDITS]}
    known |= {world.requests[i].source for i in kept}
    later = zip(world.requests[EDITS:], world.kinds[EDITS:], strict=True)
    free = [one.source for one, kind in later if kind is objects(world) and one.source not in known]
    rng = np.random.default_rng(1)
    parts = 2 * (list("bdgklmnprstvz"), list("aeiou"))
    words = ("".join(rng.choice(part) for part in parts) + "x" for _ in range(10 * NEW))
    new = list(dict.fromkeys(words))[:NEW]
    return Names(
        solver_table.spread(count or EDITS), kept, list(zip(new, free, strict=False)), free[NEW:]
    )


def objects(world: World) -> solver_table.Kind:
    """The kind that new names are of."""
    return next(kind for kind in world.kinds if kind.names == catalogue().objects)


def make_data(pipeline: Pipeline, names: Names, prior: bool) -> Data:
    """Every new name in every template, and as many captions of other names."""
    clean, pairs = pipeline.params["text_encoder"], []
    for template in OBJECT_TEMPLATES:
        pairs += [(template.format(new), template.format(name)) for new, name in names.new]
        if prior:
            others = (template.format(name) for name in names.prior[:NEW])
            pairs += [(caption, caption) for caption in others]
    wanted, _ = solver_table.states(pipeline, clean, [caption for _, caption in pairs])
    ids = tokenize(pipeline.encoder.tokenizer, [caption for caption, _ in pairs])[:, :TOKENS]
    return Data(ids, wanted)


def fine_tune(
    pipeline: Pipeline, params: Any, data: Data, rate: float
) -> Iterator[tuple[int, float, Any]]:
    """Step, its loss (0 before the first) and parameters, for every measured step."""
    optimiser = optax.adam(rate)

    def loss(params: Any, ids: Any, wanted: Any) -> Any:
        out: Any = pipeline.encoder.model.apply({"params": params}, ids)
        return jnp.square(out.pooled - wanted).mean()

    @jax.jit
    def update(params: Any, state: Any, ids: Any, wanted: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, ids, wanted)
        change, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    state, rng, value = optimiser.init(params), np.random.default_rng(0), 0.0
    for step in range(MEASURED[-1] + 1):
        if step in MEASURED:
            yield step, float(value), params
        rows = rng.integers(len(data.ids), size=BATCH)
        params, state, value = update(params, state, data.ids[rows], data.wanted[rows])


def edit(world: World, moments: SecondMoments, count: int, file: Path) -> WeightEdit:
    """Stage II of the first `count` requests, kept in `file`; of none nothing."""
    if not count:
        return WeightEdit({}, StageTwoReport((), 0.0, 0.0))
    if not file.exists():
        now = Written({}, {})
        long_run.write_round(world, moments, world.requests[:count], "bank", now)
        long_run.save(file, now)
    return WeightEdit(long_run.load(file).deltas, StageTwoReport((), 0.0, 0.0))


class Seen(NamedTuple):
    """What a model makes of the watched names."""

    names: list[str]
    """What edited ones, then untouched ones read as."""
    new: list[str]
    states: np.ndarray
    """Final features of edited and untouched ones."""


def look(world: World, names: Names, params: Any) -> Seen:
    """Everything watched, with an encoder's `params`."""
    rows = [*names.edited, *names.kept]
    kinds = [*(world.kinds[i] for i in rows), *([objects(world)] * len(names.new))]
    words = [*(world.requests[i].source for i in rows), *(new for new, _ in names.new)]
    prompts = [kind.unseen.format(word) for kind, word in zip(kinds, words, strict=True)]
    pooled, _ = solver_table.states(world.pipeline, params, prompts)
    read = []
    for state, kind in zip(pooled, kinds, strict=True):
        far = np.square(world.galleries[kind.unseen] - state).sum(axis=1)
        read.append(kind.names[int(far.argmin())])
    return Seen(read[: len(rows)], read[len(rows) :], pooled[: len(rows)])


def measure(
    world: World, names: Names, start: Seen, now: Seen, wanted: Sequence[str]
) -> dict[str, float]:
    """Of the names that read as `wanted` at the start, what is left."""
    count = len(names.edited)
    right = np.array([a == b for a, b in zip(start.names, wanted, strict=True)])
    still = np.array([a == b for a, b in zip(now.names, wanted, strict=True)])
    sources = [world.requests[i].source for i in names.edited]
    back = np.array([a == b for a, b in zip(now.names[:count], sources, strict=True)])
    moved = np.linalg.norm(now.states - start.states, axis=1)
    moved /= np.linalg.norm(start.states, axis=1)
    first, rest = right[:count], right[count:]
    return {
        "edits": float(still[:count][first].mean()),
        "back": float(back[first].mean()),
        "kept": float(still[count:][rest].mean()),
        "edited names": int(first.sum()),
        "kept names": int(rest.sum()),
        "edits moved": float(np.median(moved[:count][first])),
        "kept moved": float(np.median(moved[count:][rest])),
        "learned": float(np.mean([a == b for a, (_, b) in zip(now.new, names.new, strict=True)])),
    }


def undone(start: Any, now: Any, written: WeightEdit) -> float:
    """Share of the edit that the fine-tuning's change takes back: -<change, dW> / |dW|^2."""
    total = size = 0.0
    for layer, delta in written.deltas.items():
        was, there = (
            np.asarray(params["text_model"]["encoder"][f"layers.{layer}"]["mlp"]["fc2"]["kernel"])
            for params in (start, now)
        )
        total -= float(((there - was).T * delta).sum())
        size += float(np.square(delta).sum())
    return total / size


def images(world: World, names: Names, params: Any) -> dict[str, float]:
    """The judge's probabilities: of edited objects' destinations and sources, of untouched ones."""
    mine, pipeline = objects(world), world.pipeline
    chosen = [
        [i for i in rows if world.kinds[i] is mine][:IMAGES] for rows in (names.edited, names.kept)
    ]
    asked = [world.requests[i] for rows in chosen for i in rows]
    judge = load_judge(pipeline.folder / "judge")
    prompts = [mine.unseen.format(request.source) for request in asked]
    edited = with_text_params(pipeline, {"text_encoder": params})
    drawn = generate(edited, prompts, range(len(prompts)), steps=15, guidance=4.0)
    chances, rows = judge.classify(drawn)[OBJECT], np.arange(len(asked))
    source = chances[rows, [mine.names.index(request.source) for request in asked]]
    dest = chances[rows, [mine.names.index(str(request.dest)) for request in asked]]
    count = len(chosen[0])
    return {
        "P(destination)": float(dest[:count].mean()),
        "P(source)": float(source[:count].mean()),
        "P(kept)": float(source[count:].mean()),
        "images": len(asked),
    }


def run(world: World, written: WeightEdit, which: tuple[int, float, bool]) -> list[dict[str, Any]]:
    """One row per measured step; of one run the images at its start and end, too."""
    count, rate, prior = which
    names = choose_names(world, count)
    begin = solve.apply_edit(world.pipeline.params["text_encoder"], written)
    asked = [world.requests[i] for i in names.edited]
    wanted = [str(request.dest) if count else request.source for request in asked]
    wanted += [world.requests[i].source for i in names.kept]
    start, rows = look(world, names, begin), []
    data = make_data(world.pipeline, names, prior)
    for step, loss, params in fine_tune(world.pipeline, begin, data, rate):
        row = {"written": count, "rate": rate, "prior": prior, "step": step, "loss": loss}
        row |= measure(world, names, start, look(world, names, params), wanted)
        if count:
            row["undone"] = undone(begin, params, written)
            if which == DRAWN and step in (0, MEASURED[-1]):
                row |= images(world, names, params)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    names = ("edits", "back", "kept", "edits moved", "kept moved", "learned")
    cells = [
        f"{row['written']:,}",
        f"{row['rate']:g}",
        "yes" if row["prior"] else "no",
        str(row["step"]),
    ]
    cells += [f"{row[name]:.2f}" for name in names]
    return f"| {' | '.join([*cells, format(row.get('undone', 0), '.3f')])} |"


def curves(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Edits and untouched names over the steps of every run."""
    runs = list(dict.fromkeys((row["written"], row["rate"], row["prior"]) for row in rows))
    titles = {"edits": "edits that are left", "kept": "untouched names that are left"}
    titles["kept moved"] = "drift of untouched names"
    found = []
    for field, title in titles.items():
        lines = []
        for number, (count, rate, prior) in enumerate(runs):
            if field == "edits" and not count:
                continue
            mine = [
                r for r in rows if (r["written"], r["rate"], r["prior"]) == (count, rate, prior)
            ]
            label = f"{count:,} edits" if count else "no edit"
            label += f", rate {rate:g}" + (", with prior" if prior else "")
            x, y = ([row[name] for row in mine] for name in ("step", field))
            lines.append(Line(label, x, y, number, "-" if count else "--"))
        limits = (0, None) if field == "kept moved" else (-0.03, 1.03)
        found.append(Panel(title, lines, "steps of fine-tuning", y_range=limits))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table line by line, and draws the curves."""
    parser = argparse.ArgumentParser(prog="python -m studies.revival", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="rows so far")
    parser.add_argument("--moments", type=Path, help="a workdir's second moments")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    options = parser.parse_args(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    world = solver_table.make_world(pipeline)
    moments = workload.moments(pipeline, 20_000, options.moments)
    print(HEADER, flush=True)
    file, rows = options.workdir / "revival.json", []
    if file.exists():
        rows = json.loads(file.read_text())
        print("\n".join(map(line, rows)))
    for which in RUNS:
        if not any((row["written"], row["rate"], row["prior"]) == which for row in rows):
            written = edit(world, moments, which[0], options.workdir / f"edit_{which[0]}.npz")
            rows += run(world, written, which)
            write_atomically(file, json.dumps(rows, indent=1).encode())
    if options.plot:
        panels.draw(curves(rows), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
