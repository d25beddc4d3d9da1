"""The model folder in PyTorch, frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def load(folder: Path) -> Any:
    """diffusers' own pipeline, float32 on CPU, without gradients for weights."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        str(folder),
        safety_checker=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        # float: transformers keeps a stored float16, which is slow on CPU.
        part.eval().requires_grad_(False).float()
    return pipe


def tokens(pipe: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Ids and mask, padded to the longest of the list, as the release does."""
    return dict(pipe.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt"))


def block(pipe: Any, layer: int) -> Any:
    """One transformer block of the text encoder."""
    text = pipe.text_encoder
    return getattr(text, "text_model", text).encoder.layers[layer]


def draw(
    pipe: Any, prompts: list[str], noise: np.ndarray, steps: int, guidance: float
) -> np.ndarray:
    """diffusers' images from given noise (NHWC), as bytes."""
    drawn = pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=nchw(noise),
        output_type="np",
    )
    return (drawn.images * 255).round().astype(np.uint8)


def nchw(array: np.ndarray) -> torch.Tensor:
    """Our layout (NHWC) in torch's."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
