"""Stage I: one memory per concept, many concepts at once (DESIGN, section 5).

`compile_program` makes one program of the loop, sharded over the mesh by concept, for as many
concepts as memory allows; `optimise` runs it batch by batch. A concept's result depends on its own
inputs and seed only, never on its neighbours, its place in the batch or the number of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from emcid_jax import parallel
from emcid_jax.config import StageOneConfig
from emcid_jax.editing import loop
from emcid_jax.editing.concept_batch import (
    ConceptBatch,
    choose_concept_batch,
    free_memory,
    needed_memory,
)
from emcid_jax.editing.loop import StageOneResult
from emcid_jax.editing.objective import Params, StageOneInputs
from emcid_jax.errors import UserError
from emcid_jax.pipeline import Pipeline

MAX_SAMPLES = 96
"""Most prompts per device and step that `concept_batch = 0` takes, however much memory is free."""
ENOUGH_SAMPLES = 8
"""Prompts per device and step from which on nothing is rematerialised to fit more."""
MEMORY_SHARE = 0.8
"""Share of a device's free memory that a program may need."""


class Program(NamedTuple):
    """The compiled loop for batches of a fixed number of concepts."""

    batch: ConceptBatch
    run: Callable[[Params, StageOneInputs, Array], StageOneResult]
    """(parameters, inputs, zero offsets which are donated) -> result; leading axes are sharded."""
    bytes_per_device: int
    """Memory the compiled program says it needs."""


def optimise(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    config: StageOneConfig,
    mesh: Mesh,
    program: Program | None = None,
) -> StageOneResult:
    """Finds the memories of all concepts in `inputs`, batch by batch; the result lies on the host.

    Pass `program` (from `compile_program` on inputs of the same prompt count) to compile once for
    several calls.

    Raises:
        UserError: the smallest batch needs more memory than there is, or a result is not finite.
    """
    program = compile_program(pipeline, inputs, config, mesh) if program is None else program
    params = parallel.place(model_params(pipeline), parallel.replicated(mesh))
    count, size = len(inputs.h0), program.batch.concepts
    results = []
    for first in range(0, count, size):
        # Padding repeats the last concept: valid work, dropped below.
        rows = np.minimum(np.arange(first, first + size), count - 1)
        batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], inputs)
        batch = parallel.place(batch, parallel.sharded(mesh))
        zeros = parallel.place(np.zeros(batch.h0.shape, np.float32), parallel.sharded(mesh))
        results.append(parallel.fetch(program.run(params, batch, zeros)))
    result = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)
    bad = np.flatnonzero(~np.isfinite(result.z).all(axis=-1))
    if bad.size:
        raise UserError(
            f"stage_one.learning_rate={config.learning_rate}: the memories of requests "
            f"{bad.tolist()} are not finite; lower the rate or compute in float32"
        )
    return result


def compile_program(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    config: StageOneConfig,
    mesh: Mesh,
    batch: ConceptBatch | None = None,
    memory: int | None = None,
) -> Program:
    """The loop, compiled for `config.concept_batch` concepts, or for as many as memory allows.

    Args:
        pipeline: the model.
        inputs: arrays of any number of concepts, of which only shapes are read.
        config: settings.
        mesh: devices to shard the concepts over.
        batch: compiled as it is, whatever `config` and memory say.
        memory: bytes per device that the program may need; default: a share of what is free.

    Raises:
        UserError: `config.concept_batch` concepts, or one per device, need more than that.
    """
    params = jax.eval_shape(lambda: model_params(pipeline))

    @functools.cache
    def compiled(batch: ConceptBatch) -> jax.stages.Compiled:
        rows = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch.concepts, *leaf.shape[1:]), leaf.dtype), inputs
        )
        zeros = jax.ShapeDtypeStruct(rows.h0.shape, jnp.float32)
        lowered = _jitted(pipeline, config, batch, mesh).lower(params, rows, zeros)
        return lowered.compile()

    if batch is None:
        concepts = parallel.padded_size(inputs.h0.shape[0], mesh.size)
        samples = inputs.position.shape[1]
        fixed = min(parallel.padded_size(config.concept_batch, mesh.size), concepts)
        batch = choose_concept_batch(
            lambda batch: needed_memory(compiled(batch)),
            largest=fixed or min(concepts, mesh.size * max(1, MAX_SAMPLES // samples)),
            multiple=fixed or mesh.size,
            enough=mesh.size * -(-ENOUGH_SAMPLES // samples),
            memory=int(MEMORY_SHARE * free_memory(mesh)) if memory is None else memory,
        )
    return Program(batch, compiled(batch), needed_memory(compiled(batch)))


def model_params(pipeline: Pipeline) -> Params:
    """The parameters the loop reads."""
    return {name: pipeline.params[name] for name in ("text_encoder", "unet")}


def _jitted(
    pipeline: Pipeline, config: StageOneConfig, batch: ConceptBatch, mesh: Mesh
) -> jax.stages.Wrapped:
    """The loop of (params, inputs, zeros); concepts sharded, parameters replicated."""
    concept, everywhere = parallel.sharded(mesh), parallel.replicated(mesh)
    return jax.jit(
        functools.partial(loop.run, pipeline, config, batch.rematerialise),
        in_shardings=(everywhere, concept, concept),
        out_shardings=concept,
        donate_argnums=2,
    )
