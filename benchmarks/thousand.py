"""`python -m benchmarks.thousand`: seconds of a text-space report on 1,000 concepts.

300 objects and 700 artists of the sprite world, random memories of the size of their states, the
names to keep and captions of `configs/text_report.py`, second moments measured before. What is
timed is the whole task: reading the bank and the model, compiling, the solve, the report's pages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks import workload
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES
from emcid_jax.config import RunConfig, StageOneConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import Concept
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.moments import second_moment
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.tasks import text_report
from emcid_jax.tasks.text_report import TextReportConfig

BAR = 60.0
"""Seconds that two cores may take (issue 4, point 7)."""


def fill_bank(folder: Path, pipeline: Pipeline, count: int) -> None:
    """A bank of `count` edits, three objects to seven artists as long as there are artists."""
    names = catalogue()
    objects = max(round(0.3 * count), count - len(names.artists))
    requests = [
        EditRequest(names.objects[i], names.objects[(500 + i) % 1000], OBJECT_TEMPLATES, seed=i)
        for i in range(objects)
    ]
    requests += [
        EditRequest(name, "art", ARTIST_TEMPLATES, seed=i)
        for i, name in enumerate(names.artists[: count - objects])
    ]
    settings = StageOneConfig()
    states = predicted_conflicts.clean_run(pipeline.encoder, requests, (settings.layer,)).states
    model, rng = memories.model_hashes(pipeline), np.random.default_rng(0)
    nothing = np.zeros(4, np.float32)
    concepts = []
    for request, state in zip(requests, states, strict=True):
        delta = rng.standard_normal(state.size)
        delta *= np.linalg.norm(state) / np.linalg.norm(delta)
        z, offset = (state + delta).astype(np.float32), delta.astype(np.float32)
        about = memories.provenance(request, settings, model)
        memories.write(folder, about, Memory(z, offset, nothing, nothing, nothing), {})
        concepts.append(Concept(request, memories.key(about)))
    concept_bank.add(folder, concepts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints seconds, in all and per phase, processor time and load. Exit code 1: bar missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thousand", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="concepts")
    parser.add_argument("--captions", type=int, default=5000, help="of the second moments")
    parser.add_argument("--moments", type=Path, help="read them from a workdir's file instead")
    options = parser.parse_args(arguments)
    parallel.use_cpu_devices(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = load_pipeline(model_folder(BUNDLED))
        fill_bank(folder / "bank", pipeline, options.count)
        file = options.moments or folder / "second_moments.safetensors"
        if not options.moments:
            second_moment.write_moments(file, workload.moments(pipeline, options.captions, None))
        config = TextReportConfig(
            bank=str(folder / "bank"),
            keep_path="sprites",
            moments_file=str(file),
            run=RunConfig(compile_cache=False),
        )
        jax.clear_caches()  # What filling the bank compiled would not be compiled again.
        load, worked = os.getloadavg()[0], time.process_time()
        began = time.perf_counter()
        text_report.run(config, folder / "report")
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        lines = (folder / "report" / "metrics.jsonl").read_text().splitlines()
    phases = {entry["phase"]: entry["seconds"] for entry in map(json.loads, lines)}
    parts = ", ".join(f"{phase} {taken:.1f}" for phase, taken in phases.items())
    print(f"{options.count} concepts: {seconds:.1f} s ({parts}); at most {BAR:g} are asked")
    print(f"processor time {worked:.1f} s; load of the machine before: {load:.1f}")
    return int(seconds > BAR)


if __name__ == "__main__":
    sys.exit(main())
