"""Stage I: one memory per concept, many concepts at once (docs/stage_one.md).

`compile_program` makes one program of the loop, sharded over the mesh by concept, for as many
concepts as memory allows; `optimise` runs it batch by batch. A concept's result depends on its own
inputs and seed only, never on its neighbours, its place in the batch or the number of devices.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import adam_loop, attention
from emcid_jax.editing.stage_one.adam_loop import StageOneResult
from emcid_jax.editing.stage_one.concept_batch import (
    ConceptBatch,
    choose_concept_batch,
    free_memory,
    needed_memory,
    refused_memory,
)
from emcid_jax.editing.stage_one.loss import Params, StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel, program_cost
from emcid_jax.runtime.errors import UserError

MAX_SAMPLES = 96
"""Most prompts per device and step that `concept_batch = 0` takes, however much memory is free."""
ENOUGH_SAMPLES = 8
"""Prompts per device and step from which on they are not taken one by one to fit more."""
MEMORY_SHARE = 0.8
"""Share of a device's free memory that a program may need."""


class Program(NamedTuple):
    """The compiled loop for batches of a fixed number of concepts."""

    batch: ConceptBatch
    run: Callable[[Params, StageOneInputs, Array], StageOneResult]
    """(parameters, inputs, zero offsets which are donated) -> result; leading axes are sharded."""
    bytes_per_device: int
    """Memory the compiled program says it needs."""
    seconds: float
    """Time its compilation took."""


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
    params = model_params(pipeline, config)
    params = parallel.place(params, parallel.spread(params, mesh))
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
    options: Mapping[str, Any] | None = None,
) -> Program:
    """The loop, compiled for `config.concept_batch` concepts, or for as many as memory allows.

    Args:
        pipeline: the model.
        inputs: arrays of any number of concepts, of which only shapes are read.
        config: settings.
        mesh: devices to shard the concepts over.
        batch: compiled as it is, whatever `config` and memory say.
        memory: bytes per device that the program may need; default: a share of what is free.
        options: the compiler's, by name.

    Raises:
        UserError: `config.concept_batch` concepts, or one per device, need more than that.
    """

    @functools.cache
    def compiled(batch: ConceptBatch) -> tuple[jax.stages.Compiled, float]:
        lowered = trace(pipeline, inputs, config, mesh, batch).lower()
        began = time.perf_counter()
        program = lowered.compile(compiler_options=dict(options or {}))
        return program, time.perf_counter() - began

    @functools.cache
    def needed(batch: ConceptBatch) -> int:
        try:
            return needed_memory(compiled(batch)[0])
        except jax.errors.JaxRuntimeError as error:
            return refused_memory(error)

    if batch is None:
        free = int(MEMORY_SHARE * free_memory(mesh)) if memory is None else memory
        one = parallel.make_mesh(list(mesh.devices.flat)[:1])
        spared = parallel.spared(param_shapes(pipeline, config), mesh)

        @functools.cache
        def estimated(batch: ConceptBatch) -> int:
            return estimated_memory(pipeline, inputs, config, one, batch, mesh.size) - spared

        batch = choose_batch(needed, estimated, inputs, config, mesh.size, free)
    program, seconds = compiled(batch)
    return Program(batch, program, needed_memory(program), seconds)


def choose_batch(
    needed: Callable[[ConceptBatch], int],
    estimated: Callable[[ConceptBatch], int],
    inputs: StageOneInputs,
    config: StageOneConfig,
    devices: int,
    memory: int,
) -> ConceptBatch:
    """The batch for `inputs`: as `config` asks for, or as memory allows.

    Args:
        needed: bytes per device of a batch's program.
        estimated: the same without compiling, roughly.
        inputs: arrays or shapes.
        config: settings.
        devices: how many share a batch.
        memory: bytes per device that there are.

    Raises:
        UserError: `config.concept_batch` concepts, or one per device, need more than that.
    """
    concepts = parallel.padded_size(inputs.h0.shape[0], devices)
    samples = inputs.position.shape[1]
    fixed = min(parallel.padded_size(config.concept_batch, devices), concepts)
    return choose_concept_batch(
        needed,
        estimated,
        largest=fixed or min(concepts, devices * max(1, MAX_SAMPLES // samples)),
        multiple=fixed or devices,
        enough=devices * -(-ENOUGH_SAMPLES // samples),
        memory=memory,
    )


def estimated_memory(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    config: StageOneConfig,
    mesh: Mesh,
    batch: ConceptBatch,
    devices: int,
) -> int:
    """Bytes that each of `devices` needs for its share of `batch`, by `program_cost.memory`.

    Traces on `mesh`, one device of any kind.
    """
    share = batch._replace(concepts=batch.concepts // devices)
    return program_cost.memory(trace(pipeline, inputs, config, mesh, share).jaxpr.jaxpr)


def trace(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    config: StageOneConfig,
    mesh: Mesh,
    batch: ConceptBatch,
) -> jax.stages.Traced:
    """The loop for `batch`, not compiled yet; only shapes of `pipeline` and `inputs` are read."""

    params = param_shapes(pipeline, config)
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch.concepts, *leaf.shape[1:]), leaf.dtype), inputs
    )
    zeros = jax.ShapeDtypeStruct(rows.h0.shape, jnp.float32)
    return _jitted(pipeline, config, batch, mesh).trace(params, rows, zeros)


def model_params(pipeline: Pipeline, config: StageOneConfig) -> Params:
    """The parameters the loop reads: of the attention loss not the UNet, but its layers' own."""
    texts = {name: pipeline.params[name] for name in pipeline.texts}
    if config.objective == "attention":
        return texts | {"attention": attention.layers(pipeline)}
    return texts | {"unet": pipeline.params["unet"]}


def param_shapes(pipeline: Pipeline, config: StageOneConfig) -> Params:
    """The shapes of `model_params`; nothing is computed."""
    parts = {name: pipeline.params[name] for name in (*pipeline.texts, "unet")}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts)
    if config.objective == "attention":
        shapes["attention"] = attention.layer_shapes(pipeline, shapes.pop("unet"))
    return shapes


def _jitted(
    pipeline: Pipeline, config: StageOneConfig, batch: ConceptBatch, mesh: Mesh
) -> jax.stages.Wrapped:
    """The loop of (params, inputs, zeros); concepts sharded, parameters as `spread` says."""
    concept = parallel.sharded(mesh)
    weights = parallel.spread(param_shapes(pipeline, config), mesh)
    return jax.jit(
        functools.partial(adam_loop.run, pipeline, config, batch.one_by_one),
        in_shardings=(weights, concept, concept),
        out_shardings=concept,
        donate_argnums=2,
    )
