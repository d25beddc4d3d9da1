"""Stage II: partial forward passes and Cholesky against full passes and LU."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import workload
from benchmarks.released import stage_two as released
from benchmarks.results import Check, Row
from benchmarks.settings import Settings
from benchmarks.timing import take_turns
from emcid_jax.config import Residual, StageOneConfig, StageTwoConfig
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.pipelines.pipeline import Pipeline


def measure(pipeline: Pipeline, pipe: Any, settings: Settings, moments: SecondMoments) -> list[Row]:
    """From memories to weight changes of all layers; the moments are there, their factors not."""
    edits = workload.edits(pipeline, settings.edits)
    block = StageOneConfig().layer
    memories = _memories(pipeline, edits, block)
    prompts = SourcePrompts(*edits.source_tokens)

    def theirs() -> dict[int, np.ndarray]:
        return released.solve(
            pipe,
            edits.source,
            edits.source_tokens.positions,
            memories,
            moments.moments,
            StageTwoConfig(),
        )

    def ours(residual: Residual) -> WeightEdit:
        return stage_two.solve(
            pipeline.encoder.model,
            pipeline.params["text_encoder"],
            memories,
            prompts,
            dataclasses.replace(moments),  # a new object: factors are not kept between runs
            dataclasses.replace(StageTwoConfig(), residual=residual),
            block=block,
        )

    ours("released")  # compile
    ours("memit")
    baseline, same, memit = take_turns(
        settings.repeats, theirs, lambda: ours("released"), lambda: ours("memit")
    )
    edit: WeightEdit = same.result
    error = max(
        float(np.linalg.norm(edit.deltas[layer] - delta) / np.linalg.norm(delta))
        for layer, delta in baseline.result.items()
    )
    check = Check("dW, largest relative difference", error, high=1e-3)
    name = f"Stage II, {settings.edits} concepts"
    return [
        Row(f"{name}, same residual", "s", baseline.seconds, same.seconds, 5.0, (check,)),
        Row(f"{name}, residual memit", "s", baseline.seconds, memit.seconds, 5.0),
    ]


def _memories(pipeline: Pipeline, edits: workload.Edits, block: int) -> np.ndarray:
    """Clean states plus random offsets as long as Stage I's usual ones: half of |h0|."""
    ids, positions = edits.source_tokens.ids[:, 0], edits.source_tokens.positions[:, 0]
    params = {"params": pipeline.params["text_encoder"]}
    output: Any = jax.jit(pipeline.encoder.model.apply)(params, ids)
    states = np.asarray(output.hidden[block])[np.arange(len(ids)), positions]
    offsets = np.random.default_rng(0).standard_normal(states.shape)
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    offsets *= 0.5 * lengths / np.linalg.norm(offsets, axis=1, keepdims=True)
    return (states + offsets).astype(np.float32)
