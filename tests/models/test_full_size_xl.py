"""Stable Diffusion XL and its refiner at their real sizes, one part at a time, float32."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, disk_name
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.pipelines.published_configs import default_configs

# The published folders' own files (stabilityai/stable-diffusion-xl-base-1.0 and -refiner-1.0),
# less what names versions and places.
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
TEXT_2 = TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
REFINER = UNET | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
EULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
MODELS: Mapping[str, dict[str, dict[str, Any]]] = {
    "xl": {
        "text_encoder": TEXT,
        "text_encoder_2": TEXT_2,
        "unet": UNET,
        "vae": VAE,
        "scheduler": EULER,
    },
    "refiner": {"text_encoder_2": TEXT_2, "unet": REFINER, "vae": VAE, "scheduler": EULER},
}
READERS: Mapping[str, Any] = {
    "text_encoder": ClipTextConfig,
    "text_encoder_2": ClipTextConfig,
    "unet": UNetConfig,
    "vae": VaeConfig,
}
# As diffusers and transformers count them; the report says 2.6 billion in the UNet and 817 million
# in both text encoders of XL (arXiv 2307.01952, table 1).
MILLIONS = {
    "text_encoder": 123.06,
    "text_encoder_2": 694.66,
    "xl": 2567.46,
    "refiner": 2259.53,
}


@pytest.mark.parametrize("name", MODELS)
def test_single_files_get_the_published_configs(name: Any) -> None:
    published, ours = MODELS[name], default_configs(name, "epsilon")
    assert ours.keys() == published.keys()
    for part, config in published.items():
        if part != "scheduler":
            assert READERS[part].from_dict(ours[part]) == READERS[part].from_dict(config)
    for read in (NoiseSchedule.from_dict, lambda config: make_sampler(config, 30)):
        assert read(ours["scheduler"]) == read(published["scheduler"])
    assert [ours[part].get("architectures") for part in ours if "text" in part] == [
        published[part]["architectures"] for part in ours if "text" in part
    ]


def unet_inputs(config: UNetConfig, side: int) -> tuple[jax.Array, ...]:
    """Latents, timestep, text, pooled text and sizes as they are when drawing."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    sizes = [[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0], [1024.0, 768.0, 64.0, 0.0, 6.0]]
    text = normal(1, 77, config.cross_attention_dim[0])
    count = config.size_count(1280)
    return (
        normal(1, side, side, 4),
        jnp.array([741]),
        text,
        normal(1, 1280),
        jnp.array([next(row for row in sizes if len(row) == count)]),
    )


def parameters(tree: Any) -> float:
    """Millions of them."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


@pytest.mark.slow
def test_parts_have_the_published_numbers_of_parameters() -> None:
    for name, configs in MODELS.items():
        config = UNetConfig.from_dict(configs["unet"])
        tree = abstract_params(UNet2DCondition(config), *unet_inputs(config, 16))
        assert parameters(tree) == pytest.approx(MILLIONS[name], abs=0.01)
    for part in ("text_encoder", "text_encoder_2"):
        model = ClipTextModel(ClipTextConfig.from_dict(MODELS["xl"][part]), projection="2" in part)
        tree = abstract_params(model, jax.ShapeDtypeStruct((1, 77), jnp.int32))
        assert parameters(tree) == pytest.approx(MILLIONS[part], abs=0.01)


def perturbed(module: Any) -> Any:
    """Biases and norms start at 0 and 1, which would hide mistakes."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def relative(ours: Any, theirs: torch.Tensor) -> float:
    """Largest error over largest value."""
    expected = theirs.numpy()
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_unet(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNetConfig.from_dict(MODELS[name]["unet"])
    inputs = unet_inputs(config, 16)
    latents, timestep, text, pooled, sizes = (torch.tensor(np.asarray(x)) for x in inputs)
    torch.manual_seed(0)
    plain = {k: v for k, v in MODELS[name]["unet"].items() if not k.startswith("_")}
    reference = perturbed(UNet2DConditionModel(**plain))
    with torch.no_grad():
        expected = reference(
            latents.permute(0, 3, 1, 2),
            timestep,
            text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample.permute(0, 2, 3, 1)
    reference.save_pretrained(tmp_path)
    del reference
    gc.collect()

    unet = UNet2DCondition(config)
    params = read_params(tmp_path, abstract_params(unet, *inputs))
    error = relative(jax.jit(unet.apply)({"params": params}, *inputs), expected)
    print(f"\n{name} UNet at 16: {error:.2g}, output std {expected.std():.2g}")
    assert error <= 1e-4


@pytest.mark.slow
def test_text_encoders(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 49406, (2, 77))
    ids[:, 0], ids[0, 9], ids[0, 10:], ids[1, 76] = 49406, 49407, 0, 49407
    for part, configs in (("text_encoder", TEXT), ("text_encoder_2", TEXT_2)):
        torch.manual_seed(0)
        cls = getattr(transformers, configs["architectures"][0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = perturbed(cls(transformers.CLIPTextConfig(**configs)))
        with torch.no_grad():
            expected = reference(torch.tensor(ids), output_hidden_states=True)
        reference.save_pretrained(tmp_path / part)
        del reference
        gc.collect()

        model = ClipTextModel(ClipTextConfig.from_dict(configs), projection=part[-1] == "2")
        abstract = abstract_params(model, jax.ShapeDtypeStruct((1, 77), jnp.int32))
        params = {"params": read_params(tmp_path / part, abstract, disk_name)}
        out = jax.jit(model.apply)(params, jnp.asarray(ids, jnp.int32))
        errors = {
            "what the UNet reads": relative(out.hidden[-2], expected.hidden_states[-2]),
            "last": relative(out.last_hidden_state, expected.last_hidden_state),
        }
        if out.projected is not None:
            errors["projected"] = relative(out.projected, expected.text_embeds)
        print(f"\n{part}: " + ", ".join(f"{what} {error:.2g}" for what, error in errors.items()))
        assert max(errors.values()) <= 1e-4
