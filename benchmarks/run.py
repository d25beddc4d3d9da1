"""`python -m benchmarks.run`: every comparison, in one process, on this machine's CPU."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

BUNDLED = "sprites"
PARTS = ("stage_one", "stage_two", "sampling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes JSON. Returns 1 if a check failed, else 0."""
    options = _parse(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax looks for devices
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Slow imports, and torch wants its threads set before it starts any.
    import torch

    from benchmarks import machine, moments, results, sampling, settings, stage_one, stage_two
    from benchmarks.released import model
    from emcid_jax.pipelines.pipeline import load_pipeline
    from emcid_jax.runtime import parallel
    from emcid_jax.sprites.bundled import model_folder

    torch.set_num_threads(options.threads)
    parallel.use_cpu_devices(options.threads)
    sizes = settings.QUICK if options.quick else settings.FULL
    folder = model_folder(options.model)
    about = {
        "quick": options.quick,
        "model": options.model,
        "torch_threads": options.threads,
        "settings": dataclasses.asdict(sizes),
        **machine.describe(),
    }
    pipeline, pipe = load_pipeline(folder), model.load(folder)
    rows: list[results.Row] = []

    def report(new: Sequence[results.Row]) -> None:
        rows.extend(new)
        print("\n".join(results.line(row) for row in new), flush=True)
        results.write(options.output, rows, about)

    print(results.HEADER)
    if "stage_two" in options.parts:
        second_moments = moments.measure(pipeline, pipe, sizes)
        report(second_moments.rows)
        report(stage_two.measure(pipeline, pipe, sizes, second_moments.moments))
    if "sampling" in options.parts:
        report(sampling.measure(pipeline, pipe, sizes))
    if "stage_one" in options.parts:
        report(stage_one.measure(pipeline, pipe, sizes))
    return int(any(not check.passed for row in rows for check in row.checks))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--model", default=BUNDLED, help="the bundled model (`sprites`) or a diffusers folder"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run; its figures mean nothing"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="which comparisons; `stage_two` with the second moments that it reads",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results.json"), help="JSON file"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads of PyTorch and devices of JAX",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
