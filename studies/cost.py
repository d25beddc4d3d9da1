"""`python -m studies.cost --workdir W`: what an edit's phases cost, by number of concepts.

Each phase and count runs in a process of its own, on as many threads as it is given. Seconds are
processor time of a second, warm run; memory is the process's peak. Operations are counted
(`cost_model`). What W holds is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, thousand, workload
from emcid_jax.concepts import spans
from emcid_jax.config import Objective, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.evaluation.text_space import measure as text_space
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, STAGE_ONE, model_folder
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow.find_memories import prepare_chunk, read_prompts
from studies import cost_model, panels, solver_table
from studies.cost_model import Fit
from studies.panels import Line, Panel

COUNTS: Mapping[str, tuple[int, ...]] = {
    "Stage I": (4, 8, 16),
    "Stage I, text only": (8, 32, 96),
    "Stage I, attention": (8, 32, 96),
    "second moments": (1000, 4000, 16000),
    "Stage II": (10, 100, 300, 1000, 2000),
    "report": (10, 100, 300),
}
"""Concepts, of Stage I whole batches; of the second moments, captions."""
ASKED = (10, 100, 1000, 2000)
"""Concepts that are reported."""
USUAL = 20_000
"""Captions of an edit."""
STYLES = (
    "Stage I",
    "Stage I, text only",
    "its images",
    "second moments",
    "Stage II, prompts",
    "Stage II, systems",
    "Stage II, factors of C",
    "Stage II",
    "report",
    "Stage I, attention",
)
"""Every phase has its colour and marker in all panels."""


class Prepared(NamedTuple):
    """What is timed, and what is known of it before."""

    run: Callable[[], Any]
    about: Mapping[str, float]


def stage_one_run(count: int, objective: Objective) -> Prepared:
    """Stage I's loop of 100 steps over `count` concepts, without drawing images again."""
    pipeline = load_pipeline(model_folder(BUNDLED))
    requests = workload.edits(pipeline, count).requests
    config = dataclasses.replace(STAGE_ONE, steps=100, objective=objective, image_steps=10)
    mesh = parallel.make_mesh()
    prompts = read_prompts(pipeline, requests, config)
    inputs = prepare_chunk(pipeline, requests, prompts, slice(0, count), config, mesh)
    program = stage_one.compile_program(pipeline, inputs, config, mesh)
    about = {"program": program.bytes_per_device / 2**20, "batch": program.batch.concepts}
    return Prepared(lambda: stage_one.optimise(pipeline, inputs, config, mesh, program), about)


def moments_run(count: int) -> Prepared:
    """Second moments of 11 layers over `count` captions."""
    pipeline = load_pipeline(model_folder(BUNDLED))
    return Prepared(lambda: workload.moments(pipeline, count, None), {})


def stage_two_run(count: int, moments: Path) -> Prepared:
    """Stage II of `count` concepts; C is factorised anew."""
    pipeline = load_pipeline(model_folder(BUNDLED))
    requests = solver_table.make_world(pipeline).requests[:count]
    memories = solver_table.targets(pipeline, requests)
    prompts = SourcePrompts(*spans.source_prompts(pipeline.encoder.tokenizer, requests))

    def run() -> WeightEdit:
        return stage_two.solve(
            pipeline.encoder.model,
            pipeline.params["text_encoder"],
            memories,
            prompts,
            workload.moments(pipeline, 0, moments),
            StageTwoConfig(),
            block=solver_table.BLOCK,
        )

    return Prepared(run, {})


def report_run(count: int, moments: Path) -> Prepared:
    """The text-space report's measurements after a solve."""
    pipeline = load_pipeline(model_folder(BUNDLED))
    found, config = workload.moments(pipeline, 0, moments), StageTwoConfig()
    with tempfile.TemporaryDirectory() as name:
        thousand.fill_bank(Path(name), pipeline, count)
        concepts = concept_bank.open_bank(Path(name))
    edit = bank_solve.solve(concepts, pipeline, {FIRST: found}, config)[FIRST]
    where = bank_solve.sites_of(concepts, pipeline)
    keep, corpus = catalogue().objects, workload.captions(2000)
    return Prepared(
        lambda: text_space.measure(
            concepts, pipeline.encoder, where, edit, found, config, keep, corpus
        ),
        {},
    )


def measured(phase: str, count: int, moments: Path) -> dict[str, Any]:
    """One phase in this process, twice: the second time is what counts."""
    run, about = {
        "Stage I": lambda: stage_one_run(count, "ablate-dest"),
        "Stage I, text only": lambda: stage_one_run(count, "text-only"),
        "Stage I, attention": lambda: stage_one_run(count, "attention"),
        "second moments": lambda: moments_run(count),
        "Stage II": lambda: stage_two_run(count, moments),
        "report": lambda: report_run(count, moments),
    }[phase]()
    before = peak()
    cold, warm = (processor_time(run) for _ in range(2))
    seconds = {"cold": cold, "seconds": warm}
    return {"phase": phase, "n": count, **seconds, "before": before, "peak": peak(), **about}


def processor_time(function: Callable[[], Any]) -> float:
    """Seconds that all threads of this process worked."""
    began = time.process_time()
    function()
    return time.process_time() - began


def peak() -> float:
    """Most MiB that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Fit]:
    """The law of every phase's seconds."""
    found = {}
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row for row in rows if row["phase"] == phase]
        counts = [row["n"] for row in mine]
        found[phase] = cost_model.fit(counts, [row["seconds"] for row in mine])
    return found


def tables(
    rows: Sequence[Mapping[str, Any]], counted: Mapping[str, Mapping[str, Sequence[float]]]
) -> str:
    """Markdown: what was measured, the laws, what they say of an edit, and operations."""
    lines = ["| phase | n | cold, s | warm, s | peak, MiB | program, MiB |", "|---" * 6 + "|"]
    for row in rows:
        program = f"{row['program']:.0f}" if "program" in row else ""
        cells = [row["phase"], f"{row['n']:,}", f"{row['cold']:.1f}", f"{row['seconds']:.2f}"]
        cells += [f"{row['peak']:.0f}", program]
        lines.append(f"| {' | '.join(cells)} |")
    laws = fits(rows)
    lines += ["", "| phase | constant, s | rate | exponent |", "|---" * 4 + "|"]
    lines += [
        f"| {phase} | {law.constant:.2f} | {law.rate:.2e} | {law.exponent:.2f} |"
        for phase, law in laws.items()
    ]
    lines += ["", "| seconds | " + " | ".join(f"{n:,}" for n in ASKED) + " |", "|---" * 5 + "|"]
    for phase, law in laws.items():
        values = [law.at(USUAL if phase == "second moments" else n) for n in ASKED]
        lines.append(f"| {phase} | " + " | ".join(f"{value:.3g}" for value in values) + " |")
    lines += ["", "| TFLOP | " + " | ".join(f"{n:,}" for n in ASKED) + " |", "|---" * 5 + "|"]
    for model, phases in counted.items():
        for phase, values in phases.items():
            cells = " | ".join(f"{value:.3g}" for value in values)
            lines.append(f"| {model}: {phase} | {cells} |")
    return "\n".join(lines)


def operations(model: str) -> dict[str, list[float]]:
    """TFLOP of every phase by number of concepts, three prompts and images each."""
    one, sizes = cost_model.operations(model)
    parts = [cost_model.stage_two_flops(sizes, n) for n in ASKED]
    phases = {
        "Stage I": [n * one.concept for n in ASKED],
        "Stage I, text only": [n * one.concept_text for n in ASKED],
        "Stage I, attention": [n * one.concept_attention for n in ASKED],
        "its images": [3 * n * one.image for n in ASKED],
        f"moments of {USUAL:,} captions": [USUAL * one.caption for _ in ASKED],
        "Stage II, prompts": [part["passes"] for part in parts],
        "Stage II, systems": [part["solves"] for part in parts],
        "Stage II, factors of C": [part["constant"] for part in parts],
    }
    return {phase: [flops / 1e12 for flops in values] for phase, values in phases.items()}


def style(phase: str) -> int:
    """Number of the colour and marker of a counted phase: that of what is timed, or its own."""
    return STYLES.index("second moments" if phase.startswith("moments") else phase)


def counted_curves(counted: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Panel]:
    """Operations of every model's phases."""
    return [
        Panel(
            f"{model}: TFLOP, counted",
            [
                Line(phase, ASKED, [value or float("nan") for value in values], style(phase))
                for phase, values in phases.items()
            ],
            "concepts",
            "xy",
            (None, None),
        )
        for model, phases in counted.items()
    ]


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Measured seconds with their laws, and memory."""
    laws, seconds, memory = fits(rows), [], []
    for phase, law in laws.items():
        number = STYLES.index(phase)
        mine = [row for row in rows if row["phase"] == phase]
        counts = [row["n"] for row in mine]
        memory.append(Line(phase, counts, [row["peak"] for row in mine], number))
        if phase == "second moments":
            seconds.append(Line(phase, ASKED, [law.at(USUAL)] * len(ASKED), number, ":"))
            continue
        seconds.append(Line(phase, counts, [row["seconds"] for row in mine], number, ""))
        seconds.append(Line("", ASKED, [law.at(n) for n in ASKED], number, "-"))
    return [
        Panel("seconds of one core (dots: measured)", seconds, "concepts", "xy", (None, None)),
        Panel("peak memory of the process, MiB", memory, "concepts; captions", "x", (0, None)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing, prints the tables and draws the curves."""
    parser = argparse.ArgumentParser(prog="python -m studies.cost", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="rows so far")
    parser.add_argument("--moments", type=Path, required=True, help="a workdir's second moments")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    parser.add_argument("--phases", nargs="+", choices=COUNTS, default=[*COUNTS], help="which")
    parser.add_argument("--one", nargs=2, metavar=("PHASE", "COUNT"), help="measure this, print it")
    options = parser.parse_args(arguments)
    if options.one:
        phase, count = options.one
        print(json.dumps(measured(phase, int(count), options.moments)))
        return 0
    file, rows = options.workdir / "cost.json", []
    if file.exists():
        rows = json.loads(file.read_text())["rows"]
    for phase in options.phases:
        for count in COUNTS[phase]:
            if any((row["phase"], row["n"]) == (phase, count) for row in rows):
                continue
            asked = ["--workdir", str(options.workdir), "--moments", str(options.moments)]
            command = [sys.executable, "-m", "studies.cost", *asked, "--one", phase, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            content = {"rows": rows, **machine.describe()}
            write_atomically(file, json.dumps(content, indent=1).encode())
            print(rows[-1], flush=True)
    counted = {model: operations(model) for model in cost_model.MODELS}
    print(tables(rows, counted))
    if options.plot:
        panels.draw([*curves(rows), *counted_curves(counted)], options.plot, across=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
