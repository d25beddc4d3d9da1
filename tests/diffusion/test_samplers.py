"""Samplers against diffusers' schedulers, step for step over whole trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from emcid_jax.diffusion.samplers import Ddim, Pndm, make_sampler
from emcid_jax.diffusion.sampling import sample
from emcid_jax.errors import UserError

SHAPE = (2, 4, 4, 3)
DDIM: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PNDM = DDIM | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
SCHEDULERS = {"DDIMScheduler": DDIMScheduler, "PNDMScheduler": PNDMScheduler}


class Denoiser:
    """A fixed random nonlinear map of latents and timestep, the same in NumPy, torch and JAX."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.mix = (rng.standard_normal((3, 3)) / np.sqrt(3)).astype(np.float32)
        self.shift = rng.standard_normal((1000, 3)).astype(np.float32)

    def jax(self, latents: jax.Array, timestep: jax.Array) -> jax.Array:
        return jnp.tanh(latents @ self.mix + jnp.asarray(self.shift)[timestep]) + 0.3 * latents

    def torch(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        shift = torch.tensor(self.shift)[timestep]
        return torch.tanh(latents @ torch.tensor(self.mix) + shift) + 0.3 * latents


def trajectories(config: dict[str, Any], steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Latents after every call of the denoiser: ours (via the rows), diffusers'."""
    denoiser = Denoiser()
    noise = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)

    scheduler = SCHEDULERS[config["_class_name"]].from_config(config)
    scheduler.set_timesteps(steps)
    latents, theirs = torch.tensor(noise), []
    for timestep in scheduler.timesteps:
        latents = scheduler.step(denoiser.torch(latents, timestep), timestep, latents).prev_sample
        theirs.append(latents.numpy())

    sampler = make_sampler(config, steps)
    rows = sampler.rows()
    np.testing.assert_array_equal(rows.timestep, scheduler.timesteps.numpy())

    @jax.jit
    def run(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(state: Any, row: Any) -> tuple[Any, jax.Array]:
            output = denoiser.jax(sampler.model_input(state, row), row.timestep)
            state = sampler.advance(state, output, row)
            return state, sampler.result(state)

        _, ours = jax.lax.scan(step, sampler.start(latents), rows)
        return ours, sample(denoiser.jax, sampler, latents)

    ours, final = run(jnp.asarray(noise))
    np.testing.assert_array_equal(ours[-1], final)
    return list(np.asarray(ours)), theirs


def relative_error(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("base", [DDIM, PNDM], ids=["ddim", "pndm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 50])
def test_trajectory(base: dict[str, Any], prediction: str, steps: int) -> None:
    ours, theirs = trajectories(base | {"prediction_type": prediction}, steps)
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"set_alpha_to_one": True},
        {"steps_offset": 0},
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing"},
        {"trained_betas": list(np.linspace(0.001, 0.02, 1000))},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values())[:30],
)
@pytest.mark.parametrize("base", [DDIM, PNDM], ids=["ddim", "pndm"])
def test_every_field_of_the_file(base: dict[str, Any], change: dict[str, Any]) -> None:
    for prediction in ("epsilon", "v_prediction"):
        ours, theirs = trajectories(base | change | {"prediction_type": prediction}, 11)
        assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.4},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ],
    ids=["clip", "clip-range", "zero-snr"],
)
def test_fields_of_ddim_only(change: dict[str, Any]) -> None:
    ours, theirs = trajectories(DDIM | change, 8)
    assert relative_error(ours, theirs) <= 1e-4


def test_pndm_calls_the_denoiser_once_more_than_it_steps() -> None:
    calls = make_sampler(PNDM, 10).rows().timestep
    assert len(calls) == 11
    assert len(set(np.asarray(calls).tolist())) == 10
    assert len(make_sampler(DDIM, 10).rows().timestep) == 10


def test_defaults_are_those_of_diffusers() -> None:
    ddim = make_sampler({"_class_name": "DDIMScheduler"}, 5)
    assert isinstance(ddim, Ddim)
    config = DDIMScheduler().config
    assert ddim.clip_sample_range == config.clip_sample_range
    assert ddim.set_alpha_to_one == config.set_alpha_to_one
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    pndm = make_sampler(config, 5)
    assert isinstance(pndm, Pndm)
    assert pndm.set_alpha_to_one == PNDMScheduler().config.set_alpha_to_one
    assert hash(pndm) == hash(make_sampler(dict(config), 5))
    assert hash(pndm) == hash(
        make_sampler({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, 5)
    )


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (DDIM, "_class_name", "EulerDiscreteScheduler"),
        (DDIM, "timestep_spacing", "karras"),
        (DDIM, "thresholding", True),
        (DDIM, "clip_sample", "no"),
        (DDIM, "steps_offset", 200),
        (PNDM, "skip_prk_steps", False),
        (PNDM, "steps_offset", 1.5),
        (PNDM | {"prediction_type": "v_prediction"}, "rescale_betas_zero_snr", True),
    ],
)
def test_unsupported_values_are_named(base: dict[str, Any], field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"{field}={value!r} is not supported; \w+"):
        make_sampler(base | {field: value}, 10)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_step_counts_are_named(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps={steps} "):
        make_sampler(DDIM, steps)
