"""`python -m studies.sdxl_sizes --workdir W`: does an edit hold at other sizes and crops?

SDXL's denoiser is told the size of the original picture and where its crop begins. Stage I tells it
those of the model's own pictures alone. Here rows of `configs/evaluate_xl.py` are judged again
with others. `W` is the work folder of that run, whose memories are read, or a new one. Pictures
that the folder has judged are not drawn again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax import config as settings
from emcid_jax.evaluation.benchmarks import mixed
from emcid_jax.evaluation.benchmarks.erase import ARTIST
from emcid_jax.evaluation.drawing.batches import drawing, edited_fingerprint, judging
from emcid_jax.evaluation.drawing.before_after import Reading, Readings, by_group
from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.storage.files import write_atomically
from emcid_jax.storage.hashing import fingerprint
from emcid_jax.tasks import evaluate
from emcid_jax.workflow import environment, methods
from emcid_jax.workflow.edit_job import Job
from emcid_jax.workflow.workdir import running

CONFIG = Path(__file__).parents[1] / "configs" / "evaluate_xl.py"


class Told(NamedTuple):
    """What the denoiser is told of the original picture."""

    original_size: tuple[int, int] | None = None
    """Height and width; None: those of the model's own pictures."""
    crop: tuple[int, int] = (0, 0)
    """Top and left."""


SIZES = {  # The pictures' own are judged by the config itself.
    "original 16 x 16": Told(original_size=(16, 16)),
    "crop at (8, 8)": Told(crop=(8, 8)),
    "crop at (24, 24)": Told(crop=(24, 24)),
}
COUNT = 100
ROWS = 2
"""The first rows of the config: both encoders by ridge and by units."""
BATCH = 64
COLUMNS = ("gone", "shown", "shown_unseen", "own", "acc_s", "h", "h_dest", "h_dest_unseen")


def read(
    plan: mixed.Plan,
    pipeline: Pipeline,
    job: Job,
    told: Told,
    folder: Path,
) -> dict[Draw, Reading]:
    """What the judge reads in the plan's pictures, drawn with these sizes."""
    assert job.judge is not None
    judge, asked, groups = job.judge, job.config.evaluation, (ARTIST, OBJECT)
    clean = fingerprint(job.model, judge.fingerprint, asked.steps, asked.guidance, told)

    mesh = parallel.make_mesh()
    found = scored_images(
        plan.draws(),
        drawing(pipeline, asked, BATCH, mesh, **told._asdict()),
        judging(judge, groups, BATCH),
        BATCH,
        folder,
        edited_fingerprint(clean, job.pipeline, pipeline),
    )
    sizes = [len(judge.groups[group].labels) for group in groups]
    return {one: by_group(values, groups, sizes) for one, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per method and sizes, and writes all figures to `W/sizes.json`."""
    options = _parse(arguments)
    parallel.use_cpu_devices(0)
    environment.use_compile_cache()
    config = settings.from_config_dict(
        runpy.run_path(str(CONFIG))["get_config"]().to_dict(), evaluate.EvaluateConfig
    )
    rows = config.rows[:ROWS]
    config = dataclasses.replace(config, counts=(COUNT,), rows=rows)
    job, untouched = evaluate.prepare(config)
    assert job.judge is not None
    judged = evenly(job.requests, config.max_judged)
    sources = [request.source for request in job.requests]
    plan = mixed.make_plan(judged, untouched, job.judge.groups, config.base.evaluation, sources)
    figures: list[dict[str, Any]] = []
    print("| method | sizes | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    with running(config.base.run, options.workdir, evaluate.WRITES) as run:
        for row in rows:
            name, chosen = evaluate.varied(config, row)
            own = dataclasses.replace(job, config=chosen.base)
            edited = methods.emcid(own, COUNT, (), run).pipeline
            for sizes, told in SIZES.items():
                folder = run.workdir / "sizes"
                sides = (read(plan, one, job, told, folder) for one in (job.pipeline, edited))
                found = mixed.score(plan, Readings(*sides))
                for side in ("clean", "edited"):
                    figures.append({"name": name, "sizes": sizes, "model": side} | found[side])
                    cells = (f"{found[side][column]['value']:.2f}" for column in COLUMNS)
                    print(f"| {name}, {side} | {sizes} | " + " | ".join(cells) + " |", flush=True)
                content = json.dumps(figures, indent=1).encode()
                write_atomically(options.workdir / "sizes.json", content)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.sdxl_sizes", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="memories, moments, judgements")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
