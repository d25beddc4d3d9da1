"""`python -m studies.solver_images`: Stage II's solvers compared in images, on AICE.

    python -m studies.solver_images --requests arbitrary_val.csv --workdir runs/solvers

Half of the hold-out classes are protected by the solvers that do so; the other half shows the cost.
Images take about five minutes per solver and 300 requests on two cores; a killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcid_jax.config import StageTwoConfig
from emcid_jax.evaluation.benchmarks.aice.protocol import AiceResult, score_plan
from studies import aice_images
from studies.aice_images import Edited, kept_names

COLUMNS = ("Source2Dest", "generalization", "Dest Forget", "kept names", "other names", "reached")


def variants(names: Sequence[str]) -> dict[str, StageTwoConfig]:
    """The rows for every count; lambda is the default, 4,000."""
    base = StageTwoConfig()
    preserve = dataclasses.replace(base, solver="ridge+preserve", preserve=tuple(names))
    return {
        "ridge": base,
        "ridge+preserve": preserve,
        "nullspace": dataclasses.replace(base, solver="nullspace"),
        "nullspace, names kept": dataclasses.replace(preserve, solver="nullspace"),
    }


def figures(run: Edited, result: AiceResult, distances: tuple[float, float]) -> list[float]:
    """One row: shares of requests, change of the right class's probability, share written."""
    kept = set(kept_names(run.plan))
    change = {one.name: one.post - one.pre for one in result.holdout}
    metrics = result.metrics
    return [
        metrics["efficacy_source2dest"].value,
        metrics["generalization_source2dest"].value,
        metrics["efficacy_dest_forget"].value,
        float(np.mean([value for name, value in change.items() if name in kept])),
        float(np.mean([value for name, value in change.items() if name not in kept])),
        1 - distances[1] / distances[0],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table line by line and writes it as JSON after every line."""
    options = _parse(arguments)
    aice_images.start()
    rows = []
    print("| n | solver | " + " | ".join(COLUMNS) + " |\n" + "|---" * 8 + "|", flush=True)
    for count in options.counts:
        run = aice_images.prepare(options.requests, count, options.workdir)
        clean = aice_images.scores(run, None)
        for name, config in variants(kept_names(run.plan)).items():
            if options.solvers and name not in options.solvers:
                continue
            solved = aice_images.solve(run, config)
            result = score_plan(run.plan, clean, aice_images.scores(run, solved))
            report = solved.report
            row = figures(run, result, (report.distance_before, report.distance_after))
            cells = " | ".join(f"{value:.3f}" for value in row)
            print(f"| {count} | {name} | {cells} |", flush=True)
            rows.append({"n": count, "solver": name} | dict(zip(COLUMNS, row, strict=True)))
            (options.workdir / "solvers.json").write_text(json.dumps(rows, indent=1))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.solver_images", description=__doc__)
    parser.add_argument("--requests", required=True, help="AICE's arbitrary_val.csv")
    parser.add_argument("--workdir", type=Path, required=True, help="memories, moments, judgements")
    parser.add_argument("--counts", type=int, nargs="+", default=(100, 300))
    parser.add_argument("--solvers", nargs="*", default=(), help="only these rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
