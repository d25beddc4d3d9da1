"""Classifier-free guidance (order of the doubled batch, formula), and what is not a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.diffusion.sampling import guided, sample


def test_guidance_mixes_each_examples_two_predictions() -> None:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, 2, 2, 4)).astype(np.float32)
    negative, positive = rng.standard_normal((2, 3, 4)).astype(np.float32)
    text = jnp.asarray(np.stack([negative, positive], axis=1).reshape(6, 4))
    calls = []

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        calls.append(latents.shape)
        return jnp.sin(latents * timestep) * text[:, None, None, :]

    ours = guided(predict, 4.0)(jnp.asarray(latents), jnp.asarray(3))
    wave = np.sin(latents * 3.0)
    low, high = wave * negative[:, None, None, :], wave * positive[:, None, None, :]
    np.testing.assert_allclose(ours, low + 4.0 * (high - low), rtol=1e-5, atol=1e-5)
    assert calls == [(6, 2, 2, 4)]


def test_guidance_of_one_is_the_plain_prediction() -> None:
    latents = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32))
    text = jnp.asarray([[0.5], [2.0], [-3.0], [4.0]])
    ours = guided(lambda x, t: x * text, 1.0)(latents, jnp.asarray(0))
    np.testing.assert_allclose(ours, latents * text[1::2], rtol=1e-6)


def test_the_call_that_is_not_finite_is_known_for_each_example() -> None:
    sampler = make_sampler({"_class_name": "DDIMScheduler"}, 4)  # timesteps 751, 501, 251, 1

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        broken = jnp.asarray([0.0, jnp.where(timestep < 300, jnp.nan, 0.0)])
        return latents + broken[:, None]

    found = sample(predict, sampler, jnp.ones((2, 3)))
    np.testing.assert_array_equal(found.finite[:, 0], [True] * 5)
    np.testing.assert_array_equal(found.finite[:, 1], [True, True, True, False, False])
