"""The JSON files of published Stable Diffusions, for single files, which have none.

The sizes are those of the authors' own configurations (Stability-AI/generative-models, folder
configs/inference) in the words of diffusers' folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Version = Literal[1, 2, "xl", "refiner"]
"""Stable Diffusion 1.x, 2.x, XL, and the refiner of XL's pictures."""


def default_configs(version: Version, prediction_type: str) -> dict[str, dict[str, Any]]:
    """The JSON files of the published diffusers folder of that version, by part.

    XL has `text_encoder` and `text_encoder_2`, its refiner `text_encoder_2` alone.
    """
    if version in ("xl", "refiner"):
        scheduler, size = _EULER, {"sample_size": 1024, "scaling_factor": 0.13025}
        unet, vae = _UNET_CONFIG[version], _VAE_CONFIG | size | {"force_upcast": True}
    else:
        velocity = prediction_type == "v_prediction"
        ddim = velocity and version == 2
        scheduler = {"_class_name": "DDIMScheduler" if ddim else "PNDMScheduler"}
        unet = _UNET_CONFIG[version] | {"sample_size": 96 if velocity else 64}
        vae = _VAE_CONFIG | {"sample_size": 768 if velocity else 512, "scaling_factor": 0.18215}
    return {
        **_TEXT_CONFIGS[version],
        "unet": unet,
        "vae": vae,
        "scheduler": _SCHEDULER_CONFIG | scheduler | {"prediction_type": prediction_type},
    }


_CLIP = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_CLIP_L = _CLIP | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
# OpenCLIP's ViT-H without its last block, which Stable Diffusion 2 does not read.
_CLIP_H = _CLIP | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
# The whole of OpenCLIP's ViT-bigG: the pooled state needs the last block.
_CLIP_G = _CLIP | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_TEXT_CONFIGS: Mapping[Version, dict[str, dict[str, Any]]] = {
    1: {"text_encoder": _CLIP_L},
    2: {"text_encoder": _CLIP_H},
    "xl": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
    "refiner": {"text_encoder_2": _CLIP_G},
}
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
}
_UNET_XL = _UNET | {
    "use_linear_projection": True,
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
_UNET_CONFIG: Mapping[Version, dict[str, Any]] = {
    1: _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
    2: _UNET
    | {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "xl": _UNET_XL
    | {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": _UNET_XL
    | {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}
_VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
