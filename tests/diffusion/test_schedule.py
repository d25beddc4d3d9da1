"""The noise schedule against diffusers' schedulers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.runtime.errors import UserError

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS = {
    "sd1": SD1,
    "sd2-v": SD1 | {"prediction_type": "v_prediction"},
    "ddpm": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    "given": {"trained_betas": [0.01, 0.02, 0.05, 0.3], "num_train_timesteps": 4},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_alphas_are_those_of_diffusers(name: str) -> None:
    ours = NoiseSchedule.from_dict(CONFIGS[name]).alphas_cumprod
    theirs = DDPMScheduler(**CONFIGS[name]).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-9)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    config = SD1 | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    ours = NoiseSchedule.from_dict(config).alphas_cumprod
    theirs = DDIMScheduler(**config).alphas_cumprod.double().numpy()
    assert ours[-1] == 0.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "ddpm"])
def test_noising_and_velocity_are_those_of_diffusers(name: str) -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 64, 4, 4, 3)).astype(np.float32)
    t = rng.integers(0, 1000, 64)
    t[:2] = 0, 999
    schedule = NoiseSchedule.from_dict(CONFIGS[name])
    scheduler = DDPMScheduler(**CONFIGS[name])
    tensors = torch.tensor(clean), torch.tensor(noise), torch.tensor(t)
    arrays = jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(t)

    noisy = schedule.add_noise(*arrays)
    np.testing.assert_allclose(noisy, scheduler.add_noise(*tensors).numpy(), rtol=1e-4, atol=1e-5)
    target = schedule.training_target(*arrays)
    oracle = noise if name != "sd2-v" else scheduler.get_velocity(*tensors).numpy()
    np.testing.assert_allclose(target, oracle, rtol=1e-4, atol=1e-5)

    # A perfect denoiser's output gives back both ingredients.
    signal, _ = schedule.signal_and_noise(arrays[2])
    tolerance = 1e-5 / np.asarray(signal).min()
    np.testing.assert_allclose(schedule.noise_from(target, noisy, arrays[2]), noise, atol=1e-5)
    np.testing.assert_allclose(schedule.clean_from(target, noisy, arrays[2]), clean, atol=tolerance)


def test_equal_schedules_are_equal_static_arguments() -> None:
    one, two = (NoiseSchedule.from_dict(dict(SD1)) for _ in range(2))
    assert one.alphas_cumprod[0] > 0
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "sample"),
        ("num_train_timesteps", 0),
        ("beta_start", "0.1"),
        ("beta_end", 1.5),
        ("rescale_betas_zero_snr", True),
        ("trained_betas", 0.1),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", ["0.1"] * 1000),
        ("trained_betas", [float("nan")] * 1000),
        ("trained_betas", [0.9] * 1000),
    ],
)
def test_unsupported_values_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"{field}=.* is not supported; \w+"):
        NoiseSchedule.from_dict(SD1 | {field: value})
