"""Sizes and training lengths of the bundled model, and its parts' configs in diffusers' words."""

from __future__ import annotations

import dataclasses
from typing import Any

from emcid_jax.sprites.training.loop import Recipe

MAX_LENGTH = 32
VOCABULARY = 8192
WIDTH = 192
LATENT = 8
KEYS = 8 * WIDTH
"""MLP width of the text encoder; with 4 * WIDTH, 300 edits move the other names."""


@dataclasses.dataclass(frozen=True)
class SpriteRecipe:
    """Everything that decides the bundled weights."""

    images: int = 60_000
    """Drawn training pictures."""
    image_seed: int = 100
    """Seed of their pictures and captions."""
    vae: Recipe = Recipe(steps=3_500, batch=32, learning_rate=2e-3, warmup=100)
    vae_whole: Recipe = Recipe(steps=1_200, batch=8, learning_rate=1e-3, warmup=50)
    text: Recipe = Recipe(steps=1_700, batch=128, learning_rate=1e-3)
    interchange: Recipe = Recipe(
        steps=1_400, batch=64, learning_rate=5e-4, warmup=50, average=0.99, seed=7
    )
    unet: Recipe = Recipe(steps=10_000, batch=64, learning_rate=1.5e-3, average=0.999)
    judge: Recipe = Recipe(steps=7_000, batch=64, learning_rate=1e-3)
    image_tower: Recipe = Recipe(steps=800, batch=128, learning_rate=1e-3)


def text_config(vocabulary: int, bos: int, eos: int) -> dict[str, Any]:
    """`text_encoder/config.json`."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        "hidden_size": WIDTH,
        "intermediate_size": KEYS,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "projection_dim": WIDTH,
    }


def vae_config(scaling_factor: float = 1.0) -> dict[str, Any]:
    """`vae/config.json`."""
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "sample_size": 64,
        "block_out_channels": [16, 32, 64, 96],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": scaling_factor,
    }


def unet_config() -> dict[str, Any]:
    """`unet/config.json`."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 16,
    }


def scheduler_config() -> dict[str, Any]:
    """`scheduler/scheduler_config.json`: Stable Diffusion 1.x's noise, sampled by DDIM."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def judge_sizes() -> dict[str, Any]:
    """Sizes shared by the ViT classifier and the image tower."""
    return {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "num_channels": 3,
    }
