"""Stage I as released: one concept at a time, everything anew in every step (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.functional import mse_loss

from benchmarks.released.model import block, nchw, tokens
from emcid_jax.config import StageOneConfig


def optimise(
    pipe: Any,
    source: list[str],
    destination: list[str],
    positions: Sequence[int],
    images: np.ndarray,
    seed: int,
    config: StageOneConfig,
) -> np.ndarray:
    """The offset of one concept.

    Args:
        pipe: the model.
        source: source prompts.
        destination: destination prompts.
        positions: last subject token of each source prompt.
        images: one training image per prompt, NHWC in [-1, 1].
        seed: of all draws.
        config: Stage I's settings.
    """
    schedule: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    source_tokens, destination_tokens = tokens(pipe, source), tokens(pipe, destination)
    pixels = nchw(images)
    rows, columns = torch.arange(len(source)), torch.as_tensor(positions, dtype=torch.long)
    last = schedule.config.num_train_timesteps
    delta = torch.zeros(pipe.text_encoder.config.hidden_size, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.learning_rate)
    clean_state: list[torch.Tensor] = []

    def add_offset(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not clean_state:
            clean_state.append(output[0, columns[0]].detach().clone())
        output = output.clone()
        output[rows, columns] += delta
        return output

    for _ in range(config.steps):
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.sample(generator)
            latents = latents * pipe.vae.config.scaling_factor
            clean = pipe.text_encoder(**destination_tokens)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, last, rows.shape, generator=generator)
        noisy = schedule.add_noise(latents, noise, times)
        hook = block(pipe, config.layer).register_forward_hook(add_offset)
        edited = pipe.text_encoder(**source_tokens)
        hook.remove()
        predicted = pipe.unet(noisy, times, edited.last_hidden_state).sample
        with torch.no_grad():
            target = pipe.unet(noisy, times, clean.last_hidden_state).sample
        h0 = clean_state[0]
        loss = mse_loss(predicted, target)
        loss = loss + config.weight_decay * delta.norm() / h0.norm() ** 2
        loss = loss + config.text_loss_scale * mse_loss(edited.pooler_output, clean.pooler_output)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = config.clamp_norm_factor * h0.norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    return delta.detach().numpy().copy()
