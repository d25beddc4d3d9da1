"""A step of Stage I against PyTorch's Adam."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import torch

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.stage_one import adam_loop

WHERE = (Site("text_encoder", 10, 16),)


def test_adam_and_projection_equal_pytorch():
    config = StageOneConfig(learning_rate=0.2, clamp_norm_factor=0.4)
    random = np.random.default_rng(0)
    h0, *gradients = random.standard_normal((4, 2, 16)).astype(np.float32)
    gradients[2][0] = 0

    delta = jnp.zeros((2, 16))
    state = optax.adam(config.learning_rate).init(delta)
    for gradient in gradients:
        delta, state = adam_loop.adam_step(
            delta, state, jnp.asarray(gradient), jnp.asarray(h0), config, WHERE
        )

    clamped = 0
    for i in range(2):
        parameter = torch.zeros(16, requires_grad=True)
        optimiser = torch.optim.Adam([parameter], lr=config.learning_rate)
        radius = config.clamp_norm_factor * torch.as_tensor(h0[i]).norm()
        for gradient in gradients:
            parameter.grad = torch.as_tensor(gradient[i])
            optimiser.step()
            with torch.no_grad():
                if parameter.norm() > radius:
                    parameter *= radius / parameter.norm()
                    clamped += 1
        np.testing.assert_allclose(delta[i], parameter.detach(), rtol=1e-5, atol=1e-6)
    assert clamped > 0
