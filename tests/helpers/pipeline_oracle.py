"""What diffusers' StableDiffusionPipeline makes of a scheduler's file, latents after every call."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config

SHAPE = (2, 4, 4, 4)
"""Latents: image, height, width, channel."""
_RNG = np.random.default_rng(3)
_MIX = (_RNG.standard_normal((4, 4)) / 2).astype(np.float32)
_WAVES = _RNG.uniform(0.001, 0.03, 4).astype(np.float32)


def denoise(latents: jax.Array, timestep: jax.Array) -> jax.Array:
    """A fixed nonlinear map of latents and timestep, in place of a UNet."""
    return jnp.tanh(latents @ _MIX + 2 * jnp.sin(timestep * _WAVES)) + 0.3 * latents


class Denoiser(diffusers.ModelMixin, ConfigMixin):
    """`denoise` as the pipeline's UNet."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_to_config(in_channels=4, sample_size=4, time_cond_proj_dim=None)
        self.mix = torch.nn.Parameter(torch.tensor(_MIX), requires_grad=False)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor]:
        rows = latents.permute(0, 2, 3, 1)
        wave = 2 * torch.sin(timestep * torch.tensor(_WAVES))
        output = torch.tanh(rows @ self.mix + wave) + 0.3 * rows
        return (output.permute(0, 3, 1, 2),)


def draws(steps: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Initial noise, and the noise of each step."""
    noise, *fresh = np.random.default_rng(1).standard_normal((steps + 1, *SHAPE), np.float32)
    return noise, fresh


def load(folder: Path, config: Mapping[str, Any], index_class: str, instead: str = "") -> Any:
    """The pipeline of a folder with this scheduler file.

    `index_class` is the class in `model_index.json`; with `instead`, the scheduler is exchanged for
    one of that class, as users do, in a new pipeline.
    """
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", index_class],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    parts = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    given = dict.fromkeys(parts) | {"unet": Denoiser(), "requires_safety_checker": False}
    given["image_encoder"] = None
    with _quiet():
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, **given)
        if instead:
            # Its PNDM makes Runge-Kutta steps unless told otherwise; ours is the one of
            # Stable Diffusion.
            options = {"skip_prk_steps": True} if instead == "PNDMScheduler" else {}
            scheduler = getattr(diffusers, instead).from_config(pipe.scheduler.config, **options)
            pipe = diffusers.StableDiffusionPipeline(**given, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trajectory(pipe: Any, steps: int) -> list[np.ndarray]:
    """Latents after every call of the denoiser, drawn without guidance."""
    noise, fresh = draws(steps)
    found, left = [], iter(fresh)

    def keep(pipe: Any, index: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        found.append(kept["latents"].permute(0, 2, 3, 1).numpy().copy())
        return {}

    def given(*_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor(next(left)).permute(0, 3, 1, 2)

    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    with _quiet(), mock.patch(module, given):
        pipe(
            prompt_embeds=torch.zeros(SHAPE[0], 1, 4),
            latents=torch.tensor(noise).permute(0, 3, 1, 2),
            num_inference_steps=steps,
            guidance_scale=1.0,
            height=SHAPE[1] * 8,
            width=SHAPE[2] * 8,
            output_type="latent",
            callback_on_step_end=keep,
        )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The pipeline warns of what it overrules; its Euler uses NumPy the old way."""
    logger = diffusers.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity(50)
    logger.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.enable_progress_bar()
    logger.set_verbosity(level)
