"""Stage I's loop as a pure function: Adam on the offsets of a batch of concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import Site, by_site, sites
from emcid_jax.editing.stage_one import loss as objective
from emcid_jax.editing.stage_one import random_draws
from emcid_jax.editing.stage_one.attention import Wanted
from emcid_jax.editing.stage_one.loss import Losses, Params, Sample, StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline

AdamState = Any  # optax's own tree of arrays

HELD_OUT_DRAWS = 4
"""Samples of the held-out loss per prompt, one from each quarter of the timesteps."""
SHARES = tuple(part / 20 for part in range(10, 21))
"""Of an offset's length, what is tried if it may be shortened: the last is all of it."""


class StageOneResult(NamedTuple):
    """What Stage I found, float32, leading axis concept; size = edited tokens * dim."""

    z: Float[Array, "concept size"]
    """The memory: h0 + delta, wanted outputs of block L at the edited tokens."""
    delta: Float[Array, "concept size"]
    h0: Float[Array, "concept size"]
    curve: Float[Array, "concept step"]
    """Training loss of every step but those by the text loss alone, each on its own sample."""
    start: Losses
    """Loss at delta = 0; its noise part is on the held-out draws, which no step sees."""
    end: Losses
    """Loss at the final delta, on the same held-out draws."""


def run(
    pipeline: Pipeline,
    config: StageOneConfig,
    one_by_one: bool,
    params: Params,
    inputs: StageOneInputs,
    zeros: Float[Array, "concept size"],
) -> StageOneResult:
    """All steps from delta = 0, then the shortest offset on the way back that loses no more than
    `config.shorten`, and the held-out loss before and after.

    `zeros` are the offsets to start from, given so that their buffer can be donated. For
    `one_by_one` see `loss.loss`.
    """
    where = sites(config, pipeline.texts)
    text = dataclasses.replace(config, objective="text-only")
    sample = training_samples(pipeline, params, inputs, config)

    def steps(
        start: Array, count: int, config: StageOneConfig, sample: Callable[[Array], Any]
    ) -> tuple[Array, Array]:
        """`count` Adam steps from `start`, and the loss of each."""

        def step(
            carry: tuple[Array, AdamState], index: Array
        ) -> tuple[tuple[Array, AdamState], Array]:
            delta, state = carry
            losses, gradient = objective.loss_and_gradient(
                pipeline, params, inputs, delta, sample(index), config, one_by_one
            )
            return adam_step(delta, state, gradient, inputs.h0, config, where), losses.total

        begin = (start, optax.adam(config.learning_rate).init(start))
        (delta, _), losses = jax.lax.scan(step, begin, jnp.arange(count))
        return delta, losses

    start = steps(zeros, config.text_steps, text, lambda _: None)[0] if config.text_steps else zeros
    delta, curve = steps(start, config.steps, config, sample)
    shares = jnp.asarray([0.0, *(SHARES if config.shorten else SHARES[-1:])])
    # All in one mapped body: the program holds one more copy of the UNet, not several.
    losses = jax.lax.map(
        lambda share: held_out_loss(pipeline, params, inputs, share * delta, config), shares
    )
    kept = 1 + shortest(losses.total[1:], config.shorten * losses.total[0])
    delta = shares[kept][:, None] * delta
    start = jax.tree.map(lambda part: part[0], losses)
    end = jax.tree.map(lambda part: jnp.take_along_axis(part, kept[None], 0)[0], losses)
    return StageOneResult(inputs.h0 + delta, delta, inputs.h0, curve.T, start, end)


def shortest(
    losses: Float[Array, "share concept"], slack: Float[Array, " concept"]
) -> Int[Array, " concept"]:
    """The first of growing shares of an offset whose loss is at most `slack` above the last's."""
    return jnp.argmax(losses <= losses[-1] + slack, axis=0)


def training_samples(
    pipeline: Pipeline, params: Params, inputs: StageOneInputs, config: StageOneConfig
) -> Callable[[Array], Sample | Wanted | None]:
    """The sample of each step: a fresh one, or with `teacher_pool` = n the one of step i mod n.

    Objectives without noise have one for all steps.

    The pool's samples, teacher's predictions included, are computed here, once.
    """
    if not objective.needs_images(config):
        fixed = _fixed_sample(pipeline, params, inputs, config)
        return lambda _: fixed
    keys = random_draws.training_keys(inputs)

    def fresh(index: Array) -> Sample:
        draw = random_draws.draw(pipeline, inputs, random_draws.fold_in(keys, index))
        return objective.make_sample(pipeline, params, inputs, draw, config)

    size = min(config.teacher_pool, config.steps)
    if not size:
        return fresh
    pool = jax.lax.map(fresh, jnp.arange(size))
    return lambda index: jax.tree.map(lambda part: part[index % size], pool)


def _fixed_sample(
    pipeline: Pipeline, params: Params, inputs: StageOneInputs, config: StageOneConfig
) -> Wanted | None:
    """What objectives without noise are evaluated on."""
    if not objective.reads_all(config):
        return None
    return objective.wanted(pipeline, params, inputs, config)


def adam_step(
    delta: Float[Array, "concept size"],
    state: AdamState,
    gradient: Float[Array, "concept size"],
    h0: Float[Array, "concept size"],
    config: StageOneConfig,
    where: tuple[Site, ...],
) -> tuple[Float[Array, "concept size"], AdamState]:
    """One Adam step, then the projection onto |delta| <= clamp_norm_factor |h0|, of every site and
    token by itself."""
    updates, state = optax.adam(config.learning_rate).update(gradient, state)
    moved = delta + cast(Array, updates)
    return projected(moved, h0, config.clamp_norm_factor, where), state


def projected(
    delta: Float[Array, "concept size"],
    h0: Float[Array, "concept size"],
    factor: float,
    where: tuple[Site, ...],
) -> Float[Array, "concept size"]:
    """Offsets with |delta| <= factor |h0|, of every site and token by itself."""
    states, project = by_site(h0, where), jax.vmap(jax.vmap(optax.projections.projection_l2_ball))
    found = []
    for name, moved in by_site(delta, where).items():
        radius = factor * jnp.linalg.norm(states[name], axis=-1)
        found.append(project(moved, radius).reshape(len(delta), -1))
    return jnp.concatenate(found, axis=-1)


def held_out_loss(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept size"],
    config: StageOneConfig,
) -> Losses:
    """The loss on fixed samples that training does not see: what offsets are judged by.

    Per prompt `HELD_OUT_DRAWS` images, noises and timesteps, one timestep per equal part of them.
    """
    if not objective.needs_images(config):
        sample = _fixed_sample(pipeline, params, inputs, config)
        return objective.loss(pipeline, params, inputs, delta, sample, config)
    keys = random_draws.held_out_keys(inputs)
    edges = np.linspace(0, pipeline.schedule.num_train_timesteps, HELD_OUT_DRAWS + 1).astype(int)

    def one(index: Array) -> Losses:
        low, high = jnp.asarray(edges)[index], jnp.asarray(edges)[index + 1]
        draw = random_draws.draw(pipeline, inputs, random_draws.fold_in(keys, index), low, high)
        sample = objective.make_sample(pipeline, params, inputs, draw, config)
        return objective.loss(pipeline, params, inputs, delta, sample, config)

    losses = jax.lax.map(one, jnp.arange(HELD_OUT_DRAWS))
    return jax.tree.map(lambda part: part.mean(axis=0), losses)
