"""One training loop for every part of the sprite model: Adam, cosine decay, weight averaging.

A step's batch depends on the step alone, so a run that was killed continues as if it had not been.
Batches are sharded over all devices. Two virtual devices train faster on two CPU cores than one
with two threads (docs/sprites.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from jax import Array
from tqdm import tqdm

from emcid_jax.runtime import parallel
from emcid_jax.storage.files import write_atomically

Batch = Any
Loss = Callable[[Any, Batch, Array], Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how fast to train one part."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Examples per step."""
    learning_rate: float
    """Peak of a cosine that decays to a twentieth, after `warmup` steps of linear rise."""
    warmup: int = 200
    """Steps of linear rise."""
    average: float = 0.998
    """Decay of the exponential moving average of weights that is kept in the end."""
    seed: int = 0
    """Seed of initialisation, batches and noise."""

    def scaled(self, scale: float) -> Recipe:
        """With `scale` times the steps, at least 2; at most half of them rise."""
        steps = max(2, round(self.steps * scale))
        return dataclasses.replace(self, steps=steps, warmup=min(self.warmup, steps // 2))


class TrainState(NamedTuple):
    """What a checkpoint holds."""

    step: Array
    params: Any
    average: Any
    optimiser: Any


def fit(
    name: str,
    loss: Loss,
    params: Any,
    batch_at: Callable[[int], Batch],
    recipe: Recipe,
    folder: Path,
    *,
    save_every: int = 250,
) -> Any:
    """Minimises `loss(params, batch, key)`; returns the averaged parameters.

    `batch_at(step)` is a tree of arrays whose leading axis the number of devices divides.
    Continues from `folder/<name>.train` when it is there, and saves there every `save_every` steps.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, recipe.steps, recipe.learning_rate / 20
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.train"
    if path.exists():
        state = serialization.from_bytes(state, path.read_bytes())
    root = jax.random.key(recipe.seed)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        key = jax.random.fold_in(root, state.step)
        value, gradient = jax.value_and_grad(loss)(state.params, batch, key)
        change, optimiser_state = optimiser.update(gradient, state.optimiser)
        params = optax.apply_updates(state.params, change)
        decay = jnp.minimum(recipe.average, (state.step + 1) / (state.step + 10))
        average = optax.incremental_update(params, state.average, 1 - decay)
        return TrainState(state.step + 1, params, average, optimiser_state), value

    mesh = parallel.make_mesh()
    everywhere, spread = parallel.replicated(mesh), parallel.sharded(mesh)
    update = jax.jit(
        update, in_shardings=(everywhere, spread), out_shardings=everywhere, donate_argnums=0
    )
    state = jax.device_put(jax.tree.map(jnp.array, state), everywhere)
    losses: list[float] = []
    batches = map(batch_at, range(int(state.step), recipe.steps))
    batch = next(batches, None)
    with tqdm(total=recipe.steps, initial=int(state.step), desc=name, mininterval=5) as bar:
        for step in range(int(state.step), recipe.steps):
            state, value = update(state, batch)
            batch = next(batches, None)
            # One step in flight: more can lock XLA's CPU collectives up for want of threads.
            losses.append(float(value))
            bar.update()
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                bar.set_postfix(loss=f"{np.mean(losses):.4f}")
                losses.clear()
                write_atomically(path, serialization.to_bytes(state))
    return state.average
