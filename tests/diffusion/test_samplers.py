"""Samplers against diffusers' schedulers, step for step over whole trajectories."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from emcid_jax.diffusion.euler import Euler
from emcid_jax.diffusion.samplers import Ddim, Pndm, make_sampler, require_nothing_overruled
from emcid_jax.diffusion.sampling import sample
from emcid_jax.runtime.errors import UserError

# diffusers' Euler schedulers turn tensors into arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
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
EULER = DDIM | {"_class_name": "EulerDiscreteScheduler"}
ANCESTRAL = DDIM | {"_class_name": "EulerAncestralDiscreteScheduler"}
SCHEDULERS = {
    "DDIMScheduler": DDIMScheduler,
    "PNDMScheduler": PNDMScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,
    "EulerAncestralDiscreteScheduler": EulerAncestralDiscreteScheduler,
}
# The file of stabilityai/stable-diffusion-xl-base-1.0.
SDXL = EULER | {
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
BASES = pytest.mark.parametrize(
    "base", [DDIM, PNDM, EULER, ANCESTRAL], ids=["ddim", "pndm", "euler", "ancestral"]
)


class Denoiser:
    """A fixed random nonlinear map of latents and timestep, the same in torch and JAX."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.mix = (rng.standard_normal((3, 3)) / np.sqrt(3)).astype(np.float32)
        self.waves = rng.uniform(0.001, 0.03, 3).astype(np.float32)

    def jax(self, latents: jax.Array, timestep: jax.Array) -> jax.Array:
        shift = 2 * jnp.sin(timestep * self.waves)
        return jnp.tanh(latents @ self.mix + shift) + 0.3 * latents

    def torch(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        shift = 2 * torch.sin(timestep * torch.tensor(self.waves))
        return torch.tanh(latents @ torch.tensor(self.mix) + shift) + 0.3 * latents


def trajectories(config: dict[str, Any], steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Latents after every call of the denoiser: ours (via the rows), diffusers'."""
    denoiser = Denoiser()
    noise, *fresh = np.random.default_rng(1).standard_normal((steps + 1, *SHAPE), np.float32)
    theirs = trajectory_of_diffusers(config, steps, denoiser, noise, fresh)

    sampler = make_sampler(config, steps)
    noises = jnp.asarray(fresh) if sampler.fresh else None

    @jax.jit
    def run(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(state: Any, inputs: Any) -> tuple[Any, jax.Array]:
            row, noise = inputs
            output = denoiser.jax(sampler.model_input(state, row), row.timestep)
            state = sampler.advance(state, output, row, noise)
            return state, sampler.result(state)

        _, ours = jax.lax.scan(step, sampler.start(latents), (sampler.rows(), noises))
        per_example = None if noises is None else jnp.moveaxis(noises, 0, 1)
        return ours, sample(denoiser.jax, sampler, latents, per_example).latents

    ours, final = run(jnp.asarray(noise))
    np.testing.assert_array_equal(ours[-1], final)
    return list(np.asarray(ours)), theirs


def trajectory_of_diffusers(
    config: dict[str, Any],
    steps: int,
    denoiser: Denoiser,
    noise: np.ndarray,
    fresh: list[np.ndarray],
) -> list[np.ndarray]:
    scheduler = SCHEDULERS[config["_class_name"]].from_config(config)
    scheduler.set_timesteps(steps)
    tolerance = 0.05 if config.get("use_karras_sigmas") else 1e-3  # interpolated in float32 there
    np.testing.assert_allclose(
        make_sampler(config, steps).rows().timestep, scheduler.timesteps.numpy(), atol=tolerance
    )
    latents, theirs = torch.tensor(noise) * scheduler.init_noise_sigma, []
    for index, timestep in enumerate(scheduler.timesteps):
        output = denoiser.torch(scheduler.scale_model_input(latents, timestep), timestep)
        with pytest.MonkeyPatch.context() as patch:
            if scheduler.__class__ is EulerAncestralDiscreteScheduler:  # the one that draws noise
                drawn = torch.tensor(fresh[index])
                module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
                patch.setattr(module, lambda *_, drawn=drawn, **__: drawn)
            latents = scheduler.step(output, timestep, latents).prev_sample
        theirs.append(latents.numpy())
    return theirs


def relative_error(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("base", "steps"),
    [(base, steps) for base in (DDIM, PNDM) for steps in (1, 2, 3, 4, 7, 20, 50)]
    + [(base, steps) for base in (EULER, ANCESTRAL) for steps in (1, 3, 20)]
    + [(SDXL, 30), (SDXL | {"_class_name": "DDIMScheduler"}, 30)],
    ids=lambda value: value if isinstance(value, int) else value["_class_name"],
)
def test_trajectory(base: dict[str, Any], prediction: str, steps: int) -> None:
    ours, theirs = trajectories(base | {"prediction_type": prediction}, steps)
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"set_alpha_to_one": True},
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing"},
        {"trained_betas": list(np.linspace(0.001, 0.02, 1000))},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values())[:30],
)
@BASES
def test_every_field_of_the_file(base: dict[str, Any], change: dict[str, Any]) -> None:
    euler = base in (EULER, ANCESTRAL)
    # Euler starts this one at sigma 20,000, where float32 itself is coarser than 1e-4.
    coarse = euler and "squaredcos_cap_v2" in change.values()
    for prediction in ("epsilon",) if euler else ("epsilon", "v_prediction"):
        ours, theirs = trajectories(base | change | {"prediction_type": prediction}, 11)
        assert relative_error(ours, theirs) <= (1e-3 if coarse else 1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ],
    ids=["zero-snr"],
)
def test_fields_of_ddim_only(change: dict[str, Any]) -> None:
    ours, theirs = trajectories(DDIM | change, 8)
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "timestep_spacing": "leading"},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ],
    ids=["karras", "karras-leading", "zero-snr"],
)
def test_fields_of_euler_only(change: dict[str, Any]) -> None:
    ours, theirs = trajectories(EULER | change, 8)
    assert relative_error(ours, theirs) <= 1e-4


def test_fresh_noise_is_asked_for_by_name() -> None:
    sampler = make_sampler(ANCESTRAL, 5)
    latents = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match="0 noise arrays per example; give 5"):
        sample(Denoiser().jax, sampler, latents)
    with pytest.raises(ValueError, match="5 noise arrays per example; give 0"):
        sample(Denoiser().jax, make_sampler(EULER, 5), latents, jnp.zeros((2, 5, *SHAPE[1:])))


def test_pndm_calls_the_denoiser_once_more_than_it_steps() -> None:
    calls = make_sampler(PNDM, 10).rows().timestep
    assert len(calls) == 11
    assert len(set(np.asarray(calls).tolist())) == 10
    assert len(make_sampler(DDIM, 10).rows().timestep) == 10


def test_defaults_are_those_of_diffusers() -> None:
    ddim = make_sampler({"_class_name": "DDIMScheduler"}, 5)
    assert isinstance(ddim, Ddim)
    config = DDIMScheduler().config
    assert ddim.set_alpha_to_one == config.set_alpha_to_one
    for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        euler = make_sampler({"_class_name": name}, 5)
        assert isinstance(euler, Euler)
        assert euler.timestep_spacing == SCHEDULERS[name]().config.timestep_spacing == "linspace"
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
        (DDIM, "_class_name", "UniPCMultistepScheduler"),
        (DDIM, "_class_name", ["DDIMScheduler"]),
        (DDIM, "timestep_spacing", "karras"),
        (DDIM, "thresholding", True),
        (DDIM, "clip_sample", "no"),
        (PNDM, "skip_prk_steps", False),
        (EULER, "final_sigmas_type", "none"),
        (EULER, "interpolation_type", "cubic"),
        (EULER, "timestep_type", "continuous"),
        (EULER, "use_karras_sigmas", "no"),
        (EULER | {"use_karras_sigmas": True}, "use_beta_sigmas", True),
        (EULER, "sigma_max", 0),
        (EULER, "sigma_min", float("nan")),
        (EULER, "beta_end", 0.99),
        (EULER, "num_train_timesteps", 10**9),
        (PNDM | {"prediction_type": "v_prediction"}, "rescale_betas_zero_snr", True),
    ],
)
def test_unsupported_values_are_named(base: dict[str, Any], field: str, value: object) -> None:
    with pytest.raises(UserError, match=re.escape(f"{field}={value!r} is not supported; ")):
        make_sampler(base | {field: value}, 10)


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("offset", [None, 0, 1, 3])
@BASES
def test_files_that_sdxl_reads_as_we_do_are_accepted(
    base: dict[str, Any], offset: int | None, spacing: str | None
) -> None:
    # SDXL's pipeline hands the file to its scheduler as it is.
    given = {"steps_offset": offset, "timestep_spacing": spacing}
    kept = {key: value for key, value in base.items() if key != "steps_offset"}
    config = kept | {key: value for key, value in given.items() if value is not None}
    scheduler = SCHEDULERS[config["_class_name"]].from_config(config)
    scheduler.set_timesteps(8)
    same = np.allclose(make_sampler(config, 8).rows().timestep, scheduler.timesteps, atol=1e-3)
    if same:
        require_nothing_overruled(config)
    else:
        with pytest.raises(UserError, match=f"steps_offset={offset or 0} .*; set it to 1, as SDXL"):
            require_nothing_overruled(config)


def test_clipped_latents_are_refused_where_sdxl_clips() -> None:
    require_nothing_overruled(SDXL)
    for clip in ({}, {"clip_sample": True}):
        config = {"_class_name": "DDIMScheduler", "steps_offset": 1} | clip
        assert DDIMScheduler.from_config(config).config["clip_sample"]
        with pytest.raises(UserError, match=r"clip_sample=True .*; set it to false, as SDXL does"):
            require_nothing_overruled(config)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_step_counts_are_named(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps={steps} "):
        make_sampler(DDIM, steps)
