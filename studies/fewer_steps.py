"""`python -m studies.fewer_steps`: what saves evaluations of the UNet in Stage I, idea by idea.

All memories are of the same requests, spread over the mixed list, in the bundled model, and are
judged by the same held-out draws of the published loss, which no step sees. *Worse* counts the
requests whose held-out total is above that of 100 steps by the published settings, *ratio* is the
median of the two totals. *UNet* counts its evaluations with gradient per prompt, *seconds* is
processor time per request, compilation left out.

Ideas: fewer steps; the text loss first and few steps of the noise loss after; timesteps in strata,
or drawn by how large their gradient is at the start (Monte Carlo with weights); L-BFGS on the mean
of a fixed pool; stopping each concept by itself, once its loss falls by less than a share in ten
steps. Concepts do not see each other, so the memory of a concept that stops is the one it had then.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import Site, sites
from emcid_jax.editing.stage_one import adam_loop, random_draws
from emcid_jax.editing.stage_one import loss as objective
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.loss import Sample, StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.sprites.bundled import ATTENTION_STAGE_ONE, STAGE_ONE
from studies import held_out

CHUNK = 10
"""Steps between two looks at the memories."""
PARTS = 16
"""Equal parts of the timesteps, and samples of a pool."""
ADAM, LBFGS = "Adam", "L-BFGS"
TRUST = 0.1
"""The longest step of L-BFGS, in lengths of the clean state."""


class Problem(NamedTuple):
    """The loss of all concepts as a function of their offsets."""

    config: StageOneConfig
    inputs: StageOneInputs
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    """(offsets, number of the step) -> losses and gradients."""
    where: tuple[Site, ...]
    """The sites of the offsets."""


class Path(NamedTuple):
    """What the steps of one way led through."""

    offsets: Float[np.ndarray, "look concept size"]
    """After every CHUNK steps."""
    curve: Float[np.ndarray, "step concept"]
    seconds: float
    """Processor time per concept and step."""


class Pool(NamedTuple):
    """Samples that are drawn once, step i taking number i mod PARTS, with weights."""

    samples: Sample
    weights: Float[Array, " sample"]


def walk(problem: Problem, solver: str, steps: int, start: Array) -> Path:
    """Steps of a solver from `start`, each followed by Stage I's projection."""
    config, h0, where = problem.config, jnp.asarray(problem.inputs.h0), problem.where
    lbfgs = optax.scale_by_lbfgs(memory_size=10)

    def step(carry: tuple[Array, Any], index: Array) -> tuple[tuple[Array, Any], Array]:
        delta, state = carry
        losses, gradient = problem.gradient(delta, index)
        if solver == ADAM:
            return adam_loop.adam_step(delta, state, gradient, h0, config, where), losses
        updates, state = jax.vmap(lbfgs.update)(gradient, state, delta)
        moved = delta + adam_loop.projected(-cast(Array, updates), h0, TRUST, where)
        return (adam_loop.projected(moved, h0, config.clamp_norm_factor, where), state), losses

    @jax.jit
    def chunk(delta: Array, state: Any, first: Array) -> tuple[tuple[Array, Any], Array]:
        return jax.lax.scan(step, (delta, state), first + jnp.arange(CHUNK))

    adam = optax.adam(config.learning_rate)
    state = adam.init(start) if solver == ADAM else jax.vmap(lbfgs.init)(start)
    delta, offsets, curve = start, [], []
    # Compiles, so that the time is that of the steps.
    jax.block_until_ready(chunk(delta, state, jnp.asarray(0)))
    began = time.process_time()
    for first in range(0, steps, CHUNK):
        (delta, state), losses = chunk(delta, state, jnp.asarray(first))
        offsets.append(np.asarray(delta))
        curve.append(np.asarray(losses))
    seconds = (time.process_time() - began) / steps / len(h0)
    return Path(np.stack(offsets), np.concatenate(curve), seconds)


def stops(curve: Float[np.ndarray, "step concept"], share: float) -> np.ndarray:
    """The look at which each concept stops: the first whose mean loss is not below `1 - share`
    times that of the CHUNK steps before; the last look if none is.

    >>> stops(np.repeat([4.0, 2.0, 1.99, 1.0], CHUNK)[:, None], 0.02).tolist()
    [2]
    """
    means = curve.reshape(-1, CHUNK, curve.shape[-1]).mean(axis=1)
    done = means[1:] > (1 - share) * means[:-1]
    return np.where(done.any(axis=0), done.argmax(axis=0) + 1, len(means) - 1)


def noise_problem(
    pipeline: Pipeline, inputs: StageOneInputs, config: StageOneConfig, draws: str, together: int
) -> Problem:
    """The published loss on a pool of PARTS samples, `together` of them in every step.

    `draws` is how their timesteps are drawn: `free`, `strata` or `importance`.
    """
    params = stage_one.model_params(pipeline, config)
    pool = jax.jit(functools.partial(_pool, pipeline, config=config, draws=draws))(params, inputs)

    def one(delta: Array, index: Array) -> tuple[Array, Array]:
        sample = jax.tree.map(lambda part: part[index % PARTS], pool.samples)

        def total(offset: Array) -> tuple[Array, Array]:
            parts = objective.loss(pipeline, params, inputs, offset, sample, config)
            weighted = pool.weights[index % PARTS] * parts.noise
            losses = weighted + config.text_loss_scale * parts.text + parts.decay
            return losses.sum(), losses

        gradient, losses = jax.grad(total, has_aux=True)(delta)
        return losses, gradient

    def several(delta: Array, index: Array) -> tuple[Array, Array]:
        found = jax.lax.map(lambda i: one(delta, i), jnp.arange(together))  # The same every time.
        return found[0].mean(axis=0), found[1].mean(axis=0)

    where = sites(config, pipeline.texts)
    return Problem(config, inputs, several if together > 1 else one, where)


def _pool(
    pipeline: Pipeline, params: Any, inputs: StageOneInputs, config: StageOneConfig, draws: str
) -> Pool:
    """The samples of a pool: timesteps anywhere, one per part, or parts by their gradients."""
    keys = random_draws.training_keys(inputs)
    last = pipeline.schedule.num_train_timesteps
    edges = jnp.asarray(np.linspace(0, last, PARTS + 1).astype(int))

    def sample(index: Array, part: Array) -> Sample:
        low, high = (0, last) if draws == "free" else (edges[part], edges[part + 1])
        draw = random_draws.draw(pipeline, inputs, random_draws.fold_in(keys, index), low, high)
        return objective.make_sample(pipeline, params, inputs, draw, config)

    # Strata in an order that mixes early and late timesteps: 7 has no divisor in common with 16.
    parts, weights = 7 * jnp.arange(PARTS) % PARTS, jnp.ones(PARTS)
    if draws == "importance":
        zeros = jnp.zeros(jnp.shape(inputs.h0))

        def norm(part: Array) -> Array:
            def noise(offset: Array) -> Array:
                held = sample(PARTS + part, part)
                return objective.loss(pipeline, params, inputs, offset, held, config).noise.sum()

            return jnp.linalg.norm(jax.grad(noise)(zeros), axis=-1).mean()

        norms = jax.lax.map(norm, jnp.arange(PARTS))
        shares = norms / norms.sum()
        places = (parts + 0.5) / PARTS
        parts = jnp.searchsorted(jnp.cumsum(shares), places).clip(0, PARTS - 1)
        weights = 1 / (PARTS * shares[parts])
    samples = jax.lax.map(lambda pair: sample(*pair), (jnp.arange(PARTS), parts))
    return Pool(samples, weights)


def other_problem(pipeline: Pipeline, inputs: StageOneInputs, config: StageOneConfig) -> Problem:
    """A loss without noise: the same in every step."""
    params = stage_one.model_params(pipeline, config)
    sample = jax.jit(
        lambda params, inputs: adam_loop.training_samples(pipeline, params, inputs, config)(
            jnp.asarray(0)
        )
    )(params, inputs)

    def gradient(delta: Array, _: Array) -> tuple[Array, Array]:
        losses, found = objective.loss_and_gradient(pipeline, params, inputs, delta, sample, config)
        return losses.total, found

    return Problem(config, inputs, gradient, sites(config, pipeline.texts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per way."""
    options = _parse(arguments)
    setting = held_out.open_setting(options.count, options.skip)
    pipeline, requests = setting.pipeline, setting.requests

    def prepare(config: StageOneConfig) -> StageOneInputs:
        return jax.tree.map(jnp.asarray, setting.prepare(config))

    reference: list[np.ndarray] = []

    def told(way: str, path: Path, looks: np.ndarray | int, unet: int) -> None:
        looks = np.broadcast_to(looks, len(requests))
        found = setting.losses(path.offsets[looks, np.arange(len(requests))])
        total = np.asarray(found.total)
        reference.append(total)
        worse, ratio = int((total > reference[0]).sum()), float(np.median(total / reference[0]))
        steps = CHUNK * (1 + looks.mean())
        print(
            f"| {way} | {steps:.0f} | {steps * unet:.0f} | {steps * path.seconds:.2f} | "
            f"{found.noise.mean():.5f} | {total.mean():.4f} | {worse} | {ratio:.2f} |",
            flush=True,
        )

    print(
        f"{len(requests)} requests\n\n"
        "| way | steps | UNet | seconds | held-out noise loss | held-out total | worse | ratio |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    pictures = prepare(STAGE_ONE)
    zeros = jnp.zeros(pictures.h0.shape)
    noise = functools.partial(noise_problem, pipeline, pictures, STAGE_ONE)
    free = noise("free", 1)
    text = dataclasses.replace(STAGE_ONE, objective="text-only")
    reached = walk(other_problem(pipeline, prepare(text), text), ADAM, 60, zeros)
    attention = other_problem(pipeline, prepare(ATTENTION_STAGE_ONE), ATTENTION_STAGE_ONE)
    last = 100 // CHUNK - 1

    path = walk(free, ADAM, 100, zeros)
    for looks in (last, 4, 1):
        told("published", path, looks, 1)
    for share in (0.05, 0.02):
        told(f"published, stops below {share}", path, stops(path.curve, share), 1)
    path = walk(free, ADAM, 50, jnp.asarray(reached.offsets[-1]))
    for looks in (4, 1, 0):
        told("text first, then noise", path, looks, 1)
    found = walk(attention, ADAM, 100, zeros)
    path = walk(free, ADAM, 20, jnp.asarray(found.offsets[-1]))
    for looks in (1, 0):
        told("attention first, then noise", path, looks, 1)
    for draws in ("strata", "importance"):
        path = walk(noise(draws, 1), ADAM, 100, zeros)
        for looks in (last, 4):
            told(f"timesteps by {draws}", path, looks, 1)
    path = walk(noise("strata", 4), LBFGS, 30, zeros)
    for looks in (2, 1):
        told("L-BFGS, 4 samples a step", path, looks, 4)
    for looks in (last, 4, 1):
        told("attention loss", found, looks, 0)
    for share in (0.05, 0.02):
        told(f"attention loss, stops below {share}", found, stops(found.curve, share), 0)
    path = walk(attention, LBFGS, 100, zeros)
    for looks in (last, 4, 1):
        told("attention loss, L-BFGS", path, looks, 0)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.fewer_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--skip", type=int, default=3, help="the first requests of the list")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
