"""The sampling loop and classifier-free guidance. Neither knows a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from emcid_jax.diffusion.samplers import Sampler
from emcid_jax.runtime.finite import finite_rows

Predict = Callable[[Array, Array], Array]
"""`predict(latents, timestep) -> output`: the denoiser with its text bound, timestep a scalar."""


class Sampled(NamedTuple):
    """What noise became."""

    latents: Float[Array, "batch *shape"]
    finite: Bool[Array, "end batch"]
    """Whether latents hold only numbers: the initial ones, and those after each call."""


def sample(
    predict: Predict,
    sampler: Sampler,
    latents: Float[Array, "batch *shape"],
    fresh: Float[Array, "batch call *shape"] | None = None,
) -> Sampled:
    """Denoises unit-variance noise into latents: one `lax.scan`, one call of `predict` per row.

    Samplers that add noise on the way (`sampler.fresh` arrays per example) take it from `fresh`.
    """
    calls = 0 if fresh is None else fresh.shape[1]
    if calls != sampler.fresh:
        raise ValueError(f"fresh has {calls} noise arrays per example; give {sampler.fresh}")

    def step(state: Any, inputs: tuple[Any, Array | None]) -> tuple[Any, Array]:
        row, noise = inputs
        # What comes in is looked at, not what goes out: the step's own arithmetic stays as it is.
        finite = finite_rows(sampler.result(state))
        output = predict(sampler.model_input(state, row), row.timestep)
        return sampler.advance(state, output, row, noise), finite

    noises = None if fresh is None else jnp.moveaxis(fresh, 1, 0)
    state, finite = jax.lax.scan(step, sampler.start(latents), (sampler.rows(), noises))
    result = sampler.result(state)
    return Sampled(result, jnp.concatenate([finite, finite_rows(result)[None]]))


def guided(predict: Predict, guidance: Float[Array, ""] | float) -> Predict:
    """Classifier-free guidance, `negative + guidance * (positive - negative)`, in one call.

    `predict` is called with every example twice in a row and must bind texts in the order
    (negative, positive) per example. Interleaved and not stacked in halves: a batch that is split
    over devices then stays where it is.
    """

    def guided_predict(latents: Array, timestep: Array) -> Array:
        output = predict(jnp.repeat(latents, 2, axis=0), timestep)
        pairs = output.reshape(-1, 2, *output.shape[1:])
        return pairs[:, 0] + guidance * (pairs[:, 1] - pairs[:, 0])

    return guided_predict
