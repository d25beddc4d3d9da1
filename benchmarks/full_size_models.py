"""Stable Diffusion 1.4's architecture with seeded random weights, as a folder for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.sprites.bundled import BUNDLED, model_folder


def write(folder: Path, side: int) -> None:
    """Writes a diffusers folder of 4 GB; the tokenizer is the bundled model's.

    Args:
        folder: must not exist.
        side: size of the latents that the pipeline draws, 64 for 512 pixels.
    """
    library: Any = diffusers  # its lazy imports have no types
    configs = default_configs(1, "epsilon")
    torch.manual_seed(0)
    pipe = library.StableDiffusionPipeline(
        library.AutoencoderKL(**_fields(configs["vae"])),
        CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        CLIPTokenizer.from_pretrained(model_folder(BUNDLED) / "tokenizer"),
        library.UNet2DConditionModel(**_fields(configs["unet"]) | {"sample_size": side}),
        library.DDIMScheduler.from_config(configs["scheduler"]),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
