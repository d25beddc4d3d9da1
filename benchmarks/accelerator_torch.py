"""The UNet of a published model in PyTorch, for `benchmarks.accelerator`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax

from emcid_jax.pipelines.pipeline import Pipeline


def unet(
    pipeline: Pipeline, images: int, dtype: str, *, gradient: bool
) -> Callable[[], None] | None:
    """A run with random weights, which ends when its result is there.

    With `gradient` to the text's tokens as well. None where PyTorch lacks the device, and for
    models with size conditioning.
    """
    if None in map(importlib.util.find_spec, ("torch", "diffusers")) or pipeline.family.joined:
        return None
    import diffusers
    import torch

    gpu = torch.cuda.is_available()
    if gpu != (jax.default_backend() == "gpu") or jax.default_backend() == "tpu":
        return None
    library: Any = diffusers  # Its lazy imports have no types.
    place = {"device": "cuda" if gpu else "cpu", "dtype": getattr(torch, dtype)}
    config = {k: v for k, v in pipeline.configs["unet"].items() if not k.startswith("_")}
    network = library.UNet2DConditionModel(**config).to(**place).requires_grad_(False)
    height, width, channels = pipeline.latent_size
    latents = torch.randn(images, channels, height, width, **place)
    text = torch.randn(
        images,
        pipeline.encoder.tokenizer.model_max_length,
        pipeline.encoder.model.config.hidden_size,
        **place,
    )

    def run() -> None:
        states = text.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            found = network(latents, 500, states).sample
            if gradient:
                torch.autograd.grad(found.float().square().mean(), states)
        if gpu:
            torch.cuda.synchronize()

    return run
