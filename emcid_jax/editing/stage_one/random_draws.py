"""Stage I's random numbers: all of a concept's come from its request's own seed.

A draw depends on the seed, a number (the step, or the held-out draw) and the prompt's place in its
request, never on the concept's neighbours, its place in the batch or the number of devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from emcid_jax.editing.stage_one.loss import Draw, StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline


def training_keys(inputs: StageOneInputs) -> Key[Array, " concept"]:
    """The key of each concept's training draws; step i draws with `fold_in(keys, i)`."""
    return fold_in(_keys(inputs), 0)


def held_out_keys(inputs: StageOneInputs) -> Key[Array, " concept"]:
    """The key of each concept's held-out draws, which no step sees."""
    return fold_in(_keys(inputs), 1)


def fold_in(keys: Key[Array, " concept"], data: int | Array) -> Key[Array, " concept"]:
    """`jax.random.fold_in` of the same number into every concept's key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def draw(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    keys: Key[Array, " concept"],
    low: int | Array = 0,
    high: int | Array | None = None,
) -> Draw:
    """A random image, posterior sample, noise and timestep in [low, high) per concept and prompt.

    `high` is by default the number of timesteps. Each prompt has its own key, so that padding
    prompts changes no draw.
    """
    assert inputs.latent_mean is not None
    assert inputs.latent_std is not None
    last = pipeline.schedule.num_train_timesteps if high is None else high

    def one(
        key: Key[Array, ""],
        prompt: Array,
        mean: Float[Array, "sample height width channel"],
        std: Float[Array, "sample height width channel"],
    ) -> Draw:
        image, latent, noise, time = jax.random.split(jax.random.fold_in(key, prompt), 4)
        pick = jax.random.randint(image, (), 0, mean.shape[0]) == jnp.arange(mean.shape[0])
        # A sum over 0 and 1 instead of a gather: elementwise, so it shards without collectives.
        mean, std = (jnp.where(pick[:, None, None, None], x, 0).sum(0) for x in (mean, std))
        return Draw(
            mean + std * jax.random.normal(latent, mean.shape),
            jax.random.normal(noise, mean.shape),
            jax.random.randint(time, (), low, last),
        )

    prompts = jnp.arange(inputs.position.shape[1])
    per_prompt = jax.vmap(one, in_axes=(None, 0, 1, 1))
    return jax.vmap(per_prompt, in_axes=(0, None, 0, 0))(
        keys, prompts, inputs.latent_mean, inputs.latent_std
    )


def _keys(inputs: StageOneInputs) -> Key[Array, " concept"]:
    return jax.random.wrap_key_data(inputs.seeds, impl="threefry2x32")
