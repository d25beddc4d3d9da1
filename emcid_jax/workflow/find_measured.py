"""What Stage II knows of an encoder: second moments of keys, or statistics for concept units."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from emcid_jax.config import MomentConfig, RunConfig, StageTwoConfig
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.units import statistics
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow.find_moments import find_moments
from emcid_jax.workflow.workdir import Log

Measured = SecondMoments | UnitStatistics


def require_moments(found: Measured) -> SecondMoments:
    """`found`, for what reads second moments. UserError if units' statistics were measured."""
    if isinstance(found, UnitStatistics):
        raise UserError(
            "config.stage_two.solver is 'units', of which this task predicts nothing; give "
            "'ridge', 'ridge+preserve' or 'nullspace'"
        )
    return found


def find_measured(
    pipeline: Pipeline,
    captions: Sequence[str],
    stage_two: StageTwoConfig,
    layers: tuple[int, ...],
    config: MomentConfig,
    run: RunConfig,
    folder: Path,
    log: Log,
) -> Measured:
    """What `stage_two.solver` reads, from `folder` or measured and filed there.

    Second moments are those of `layers`, statistics those of the block that gets units. `folder` is
    known to be for the same model and captions, see `find_moments`.
    """
    if stage_two.solver != "units":
        return find_moments(pipeline, list(captions), layers, config, run, folder, log)
    block = stage_two.layers[-1]
    path = folder / f"units-{block}.safetensors"
    if path.exists():
        return statistics.read_statistics(path)
    began = time.perf_counter()
    found = statistics.measure(
        pipeline, captions, block, seed=config.seed, batch=config.batch, progress=run.progress
    )
    statistics.write_statistics(path, found)
    log.write("unit_statistics", time.perf_counter() - began, captions=len(captions))
    return found
