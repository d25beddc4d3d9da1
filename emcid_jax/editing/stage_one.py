"""Stage I: one memory per concept, many concepts at once (DESIGN, section 5).

`prepare` computes, once per concept, all that the loop reads. `optimise` takes Adam steps on the
offsets of a batch of concepts in one compiled program, sharded over the mesh by concept. A
concept's result depends on its own inputs and seed only, never on its neighbours, its place in the
batch or the number of devices.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Key

from emcid_jax import parallel
from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.config import StageOneConfig
from emcid_jax.editing import objective
from emcid_jax.editing.objective import Draw, Losses, Params, StageOneInputs
from emcid_jax.errors import UserError
from emcid_jax.models.clip_text import ClipTextModel, TextOutput
from emcid_jax.models.vae import AutoencoderKL
from emcid_jax.pipeline import Pipeline, tokenize

AdamState = Any  # optax's own tree of arrays

HELD_OUT_DRAWS = 4
"""Samples of the held-out loss per prompt, one from each quarter of the timesteps."""
PREPARE_BATCH = 32
"""Prompts or images encoded together, per device, before the loop."""
MAX_SAMPLES = 96
"""Most prompts per device and step that `concept_batch = 0` takes, however much memory is free."""
MEMORY_SHARE = 0.8
"""Share of a device's free memory that a program may need."""


class StageOneResult(NamedTuple):
    """What Stage I found, float32, leading axis concept."""

    z: Float[Array, "concept dim"]
    """The memory: h0 + delta, wanted output of block L at the last subject token."""
    delta: Float[Array, "concept dim"]
    h0: Float[Array, "concept dim"]
    curve: Float[Array, "concept step"]
    """Training loss of every step, each on its own random draw."""
    start: Losses
    """Loss at delta = 0; its noise part is on the held-out draws, which no step sees."""
    end: Losses
    """Loss at the final delta, on the same held-out draws."""


class Program(NamedTuple):
    """The compiled loop for batches of a fixed number of concepts."""

    concepts: int
    run: Callable[[Params, StageOneInputs, Array], StageOneResult]
    """(parameters, inputs, zero offsets which are donated) -> result; leading axes are sharded."""
    bytes_per_device: int
    """Memory the compiled program says it needs."""


def prepare(
    pipeline: Pipeline,
    source: PromptRectangle,
    destination: PromptRectangle,
    seeds: Sequence[int],
    images: Float[np.ndarray, "concept sample prompt height width 3"] | None,
    config: StageOneConfig,
    mesh: Mesh | None = None,
) -> StageOneInputs:
    """Everything the loop reads, computed once per concept; the result lies on the host.

    Args:
        pipeline: the clean model.
        source: the source prompts, see `concepts.spans.source_prompts`.
        destination: the destination prompts of the same requests (not read by `esd`).
        seeds: one per concept.
        images: training images in [-1, 1], see `training_images`; None for `text-only`.
        config: settings.
        mesh: devices that share the work; default: the first one.

    Raises:
        UserError: the layer is not one of the model's blocks.
    """
    blocks = pipeline.text.config.num_hidden_layers
    if not 0 <= config.layer < blocks:
        raise UserError(
            f"stage_one.layer={config.layer}: the text encoder has blocks 0 to {blocks - 1}"
        )
    mesh = parallel.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    everywhere = parallel.replicated(mesh)
    text = jax.device_put(pipeline.params["text_encoder"], everywhere)
    encode = functools.partial(_encode, objective.text_model(pipeline), text, config.layer)

    hidden, source_last, _ = _per_prompt(encode, source.ids, mesh)
    if config.objective == "esd":
        empty = np.asarray(tokenize(pipeline.tokenizer, [""]))
        _, empty_last, empty_pooled = _per_prompt(encode, empty[None], mesh)
        shape = (*source.mask.shape, empty_pooled.shape[-1])
        target_pooled = np.broadcast_to(empty_pooled, shape)
        teacher_text = source_last
        empty_text = np.broadcast_to(empty_last[0], (len(hidden), *empty_last.shape[2:]))
    else:
        _, teacher_text, target_pooled = _per_prompt(encode, destination.ids, mesh)
        empty_text = None
    latent_mean, latent_std = None, None
    if objective.needs_images(config):
        assert images is not None
        flat = images.reshape(len(images), -1, *images.shape[3:])
        vae = jax.device_put(pipeline.params["vae"], everywhere)
        posterior = functools.partial(_posterior, pipeline.vae, vae)
        latent_mean, latent_std = (
            part.reshape(*images.shape[:3], *part.shape[2:])
            for part in _per_prompt(posterior, flat, mesh)
        )
    reads_teacher = config.objective not in ("sampled-noise", "text-only")
    # NumPy arrays: `optimise` moves one batch at a time to the devices.
    arrays: dict[str, Any] = {
        "source_ids": source.ids,
        "position": source.positions,
        "prompt_mask": source.mask.astype(np.float32),
        "hidden": hidden,
        "h0": hidden[np.arange(len(hidden)), 0, source.positions[:, 0]],
        "target_pooled": target_pooled,
        "seeds": _seed_words(seeds),
        "teacher_text": teacher_text if reads_teacher else None,
        "empty_text": empty_text,
        "latent_mean": latent_mean,
        "latent_std": latent_std,
    }
    return StageOneInputs(**arrays)


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
        UserError: one concept per device needs more memory than there is, or a result is not
            finite.
    """
    program = compile_program(pipeline, inputs, config, mesh) if program is None else program
    params = jax.device_put(model_params(pipeline), parallel.replicated(mesh))
    count = len(inputs.h0)
    results = []
    for first in range(0, count, program.concepts):
        # Padding repeats the last concept: valid work, dropped below.
        rows = np.minimum(np.arange(first, first + program.concepts), count - 1)
        batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], inputs)
        batch = jax.device_put(batch, parallel.sharded(mesh))
        zeros = jax.device_put(np.zeros(batch.h0.shape, np.float32), parallel.sharded(mesh))
        results.append(jax.device_get(program.run(params, batch, zeros)))
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
    memory: int | None = None,
) -> Program:
    """The loop, compiled for `config.concept_batch` concepts, or for as many as memory allows.

    Args:
        pipeline: the model.
        inputs: arrays of any number of concepts, of which only shapes are read.
        config: settings.
        mesh: devices to shard the concepts over.
        memory: bytes per device that the program may need; default: a share of what is free.

    Raises:
        UserError: one concept per device needs more than that.
    """
    devices = mesh.size
    concepts = parallel.padded_size(inputs.h0.shape[0], devices)
    params = jax.tree.map(_abstract, model_params(pipeline))
    memory = int(MEMORY_SHARE * _free_memory(mesh)) if memory is None else memory

    @functools.cache
    def compiled(size: int) -> jax.stages.Compiled:
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), inputs
        )
        zeros = jax.ShapeDtypeStruct(batch.h0.shape, jnp.float32)
        return _program(pipeline, config, mesh).lower(params, batch, zeros).compile()

    if config.concept_batch:
        size = min(parallel.padded_size(config.concept_batch, devices), concepts)
    else:
        samples = inputs.position.shape[1]
        largest = min(concepts, devices * max(1, MAX_SAMPLES // samples))
        size = choose_concept_batch(lambda n: _needed(compiled(n)), largest, devices, memory)
    return Program(size, compiled(size), _needed(compiled(size)))


def choose_concept_batch(
    needed: Callable[[int], int], largest: int, multiple: int, memory: int
) -> int:
    """The number of concepts per batch: at most `largest`, a multiple of `multiple`.

    `needed(concepts)` gives bytes per device, read off a compiled program, so that nothing is run
    to find out. Most often the first one fits; otherwise the smallest and the largest say how much
    a concept adds.

    Raises:
        UserError: `needed(multiple)` exceeds `memory`.
    """
    most = needed(largest)
    if most <= memory:
        return largest
    least = needed(multiple)
    if least > memory:
        raise UserError(
            f"stage_one: one concept per device needs {least / 2**30:.2f} GiB of the "
            f"{memory / 2**30:.2f} GiB free; use fewer templates or dtype bfloat16"
        )
    share = (memory - least) / (most - least)
    size = multiple + int(share * (largest - multiple)) // multiple * multiple
    while needed(size) > memory:
        size -= multiple
    return size


def draw(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    keys: Key[Array, " concept"],
    low: int | Array,
    high: int | Array,
) -> Draw:
    """A random image, posterior sample, noise and timestep in [low, high) per concept and prompt.

    Each prompt has its own key, so that padding prompts changes no draw.
    """
    assert inputs.latent_mean is not None
    assert inputs.latent_std is not None

    def one(key: Array, prompt: Array, mean: Array, std: Array) -> Draw:
        image, latent, noise, time = jax.random.split(jax.random.fold_in(key, prompt), 4)
        pick = jax.random.randint(image, (), 0, mean.shape[0]) == jnp.arange(mean.shape[0])
        # A sum over 0 and 1 instead of a gather: elementwise, so it shards without collectives.
        mean, std = (jnp.where(pick[:, None, None, None], x, 0).sum(0) for x in (mean, std))
        return Draw(
            mean + std * jax.random.normal(latent, mean.shape),
            jax.random.normal(noise, mean.shape),
            jax.random.randint(time, (), low, high),
        )

    prompts = jnp.arange(inputs.position.shape[1])
    per_prompt = jax.vmap(one, in_axes=(None, 0, 1, 1))
    return jax.vmap(per_prompt, in_axes=(0, None, 0, 0))(
        keys, prompts, inputs.latent_mean, inputs.latent_std
    )


def held_out_loss(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept dim"],
    config: StageOneConfig,
) -> Losses:
    """The loss on fixed samples that training does not see: what offsets are judged by.

    Per prompt `HELD_OUT_DRAWS` images, noises and timesteps, one timestep per equal part of them.
    """
    if not objective.needs_images(config):
        return objective.loss(pipeline, params, inputs, delta, None, config)
    keys = fold_in(_keys(inputs), 1)
    edges = np.linspace(0, pipeline.schedule.num_train_timesteps, HELD_OUT_DRAWS + 1).astype(int)

    def one(index: Array) -> Losses:
        low, high = jnp.asarray(edges)[index], jnp.asarray(edges)[index + 1]
        sample = draw(pipeline, inputs, fold_in(keys, index), low, high)
        return objective.loss(pipeline, params, inputs, delta, sample, config)

    losses = jax.lax.map(one, jnp.arange(HELD_OUT_DRAWS))
    return jax.tree.map(lambda part: part.mean(axis=0), losses)


def adam_step(
    delta: Float[Array, "concept dim"],
    state: AdamState,
    gradient: Float[Array, "concept dim"],
    h0: Float[Array, "concept dim"],
    config: StageOneConfig,
) -> tuple[Float[Array, "concept dim"], AdamState]:
    """One Adam step, then the projection of each delta onto |delta| <= clamp_norm_factor |h0|."""
    updates, state = optax.adam(config.learning_rate).update(gradient, state)
    radius = config.clamp_norm_factor * jnp.linalg.norm(h0, axis=-1)
    delta = jax.vmap(optax.projections.projection_l2_ball)(delta + cast(Array, updates), radius)
    return delta, state


def model_params(pipeline: Pipeline) -> Params:
    """The parameters the loop reads."""
    return {name: pipeline.params[name] for name in ("text_encoder", "unet")}


def _program(pipeline: Pipeline, config: StageOneConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted loop over all steps; concepts sharded, parameters replicated."""

    def run(params: Params, inputs: StageOneInputs, zeros: Array) -> StageOneResult:
        keys = training_keys(inputs)
        last = pipeline.schedule.num_train_timesteps

        def step(
            carry: tuple[Array, AdamState], index: Array
        ) -> tuple[tuple[Array, AdamState], Array]:
            delta, state = carry
            sample = None
            if objective.needs_images(config):
                sample = draw(pipeline, inputs, fold_in(keys, index), 0, last)
            losses, gradient = objective.loss_and_gradient(
                pipeline, params, inputs, delta, sample, config
            )
            return adam_step(delta, state, gradient, inputs.h0, config), losses.total

        begin = (zeros, optax.adam(config.learning_rate).init(zeros))
        (delta, _), curve = jax.lax.scan(step, begin, jnp.arange(config.steps))
        # Both ends in one mapped body: the program holds one more copy of the UNet, not two.
        ends = jax.lax.map(
            lambda offset: held_out_loss(pipeline, params, inputs, offset, config),
            jnp.stack([jnp.zeros_like(delta), delta]),
        )
        start, end = (jax.tree.map(lambda part, i=i: part[i], ends) for i in range(2))
        return StageOneResult(inputs.h0 + delta, delta, inputs.h0, curve.T, start, end)

    concept, everywhere = parallel.sharded(mesh), parallel.replicated(mesh)
    return jax.jit(
        run,
        in_shardings=(everywhere, concept, concept),
        out_shardings=concept,
        donate_argnames="zeros",
    )


def training_keys(inputs: StageOneInputs) -> Key[Array, " concept"]:
    """The key of each concept's training draws; step i draws with `fold_in(keys, i)`."""
    return fold_in(_keys(inputs), 0)


def _keys(inputs: StageOneInputs) -> Key[Array, " concept"]:
    return jax.random.wrap_key_data(inputs.seeds, impl="threefry2x32")


def fold_in(keys: Key[Array, " concept"], data: int | Array) -> Key[Array, " concept"]:
    """`jax.random.fold_in` of the same number into every concept's key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def _seed_words(seeds: Sequence[int]) -> np.ndarray:
    """Seeds modulo 2^64 as pairs of 32-bit words, high word first."""
    whole = np.array([seed % 2**64 for seed in seeds], np.uint64)
    return np.stack([whole >> np.uint64(32), whole & np.uint64(2**32 - 1)], -1).astype(np.uint32)


@functools.partial(jax.jit, static_argnames=("text", "layer"))
def _encode(
    text: ClipTextModel, params: Params, layer: int, ids: Array
) -> tuple[Array, Array, Array]:
    out = cast(TextOutput, text.apply({"params": params}, ids))
    parts = (out.hidden[layer], out.last_hidden_state, out.pooled)
    return jax.tree.map(lambda part: part.astype(jnp.float32), parts)


@functools.partial(jax.jit, static_argnames="vae")
def _posterior(vae: AutoencoderKL, params: Params, images: Array) -> tuple[Array, Array]:
    mean, std = cast(
        tuple[Array, Array], vae.apply({"params": params}, images, method=AutoencoderKL.encode)
    )
    return mean * vae.config.scaling_factor, std * vae.config.scaling_factor


def _per_prompt(
    function: Callable[[Array], tuple[Array, ...]], array: np.ndarray, mesh: Mesh
) -> list[np.ndarray]:
    """`function` of the rows [concept, prompt, ...] of `array`, in batches of one shape."""
    rows = array.reshape(-1, *array.shape[2:])
    size = min(PREPARE_BATCH * mesh.size, parallel.padded_size(len(rows), mesh.size))
    batches = []
    for first in range(0, len(rows), size):
        index = np.minimum(np.arange(first, first + size), len(rows) - 1)
        batch = jax.device_put(rows[index], parallel.sharded(mesh))
        batches.append(jax.device_get(function(batch)))
    parts = [np.concatenate(part)[: len(rows)] for part in zip(*batches, strict=True)]
    return [part.reshape(*array.shape[:2], *part.shape[1:]) for part in parts]


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _needed(compiled: jax.stages.Compiled) -> int:
    """Bytes per device of arguments, results and temporaries of a compiled program."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _free_memory(mesh: Mesh) -> int:
    """Bytes of the fullest device that are free; on CPU, this device's part of half the machine."""
    stats = [device.memory_stats() for device in mesh.devices.flat]
    if all(stats):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (2 * mesh.size)
