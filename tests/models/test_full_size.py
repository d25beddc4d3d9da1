"""Stable Diffusion at its real sizes against diffusers: random weights, through files, float32."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig, rename_vae_key
from emcid_jax.models.text.clip import ClipTextConfig
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.pipelines.generate import generate, initial_noise
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.published_configs import default_configs

# The published folders' own files (CompVis/stable-diffusion-v1-4, stabilityai/stable-diffusion-2-1
# and its base model), less what names versions and places.
UNET1: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
UNET2 = UNET1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
VELOCITY = {"sample_size": 96, "upcast_attention": True}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT1: dict[str, Any] = {
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
    "vocab_size": 49408,
}
# OpenCLIP's text model less its last block: Stable Diffusion 2 reads the penultimate layer.
TEXT2 = TEXT1 | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
DDIM_V = PNDM | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
MODELS: Mapping[str, dict[str, dict[str, Any]]] = {
    "sd1": {"text_encoder": TEXT1, "unet": UNET1, "vae": VAE, "scheduler": PNDM},
    "sd2-base": {"text_encoder": TEXT2, "unet": UNET2, "vae": VAE, "scheduler": PNDM},
    "sd2-v": {
        "text_encoder": TEXT2,
        "unet": UNET2 | VELOCITY,
        "vae": VAE | {"sample_size": 768},
        "scheduler": DDIM_V,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_single_files_get_the_published_configs(name: str) -> None:
    published = MODELS[name]
    velocity = "v_prediction" if name == "sd2-v" else "epsilon"
    ours = default_configs(1 if name == "sd1" else 2, velocity)
    for part, cls in (("text_encoder", ClipTextConfig), ("unet", UNetConfig), ("vae", VaeConfig)):
        assert cls.from_dict(ours[part]) == cls.from_dict(published[part])
    theirs = NoiseSchedule.from_dict(published["scheduler"])
    assert NoiseSchedule.from_dict(ours["scheduler"]) == theirs
    steps = make_sampler(ours["scheduler"], 20)
    assert steps == make_sampler(published["scheduler"], 20)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def perturbed(module: Any) -> Any:
    """Biases and norms start at 0 and 1, which would hide mistakes."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def relative(ours: Any, theirs: np.ndarray) -> float:
    """Largest error over largest value; `theirs` is NCHW."""
    expected = theirs.transpose(0, 2, 3, 1)
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())


def nhwc(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.transpose(0, 2, 3, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"), [("sd1", 64), ("sd2-base", 64), ("sd2-v", 96), ("sd1", 96)]
)
def test_unet(name: str, side: int, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    reference = perturbed(UNet2DConditionModel(**plain(MODELS[name]["unet"])))
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, side, side)).astype(np.float32)
    width = MODELS[name]["unet"]["cross_attention_dim"]
    text = rng.standard_normal((1, 77, width)).astype(np.float32)
    with torch.no_grad():
        out = reference(torch.tensor(latents), torch.tensor([741]), torch.tensor(text))
        expected = out.sample.numpy()
    reference.save_pretrained(tmp_path)
    del reference, out
    gc.collect()

    unet = UNet2DCondition(UNetConfig.from_dict(MODELS[name]["unet"]))
    inputs = nhwc(latents), jnp.array([741]), jnp.asarray(text)
    params = read_params(tmp_path, abstract_params(unet, *inputs))
    error = relative(jax.jit(unet.apply)({"params": params}, *inputs), expected)
    print(f"\n{name} UNet at {side}: {error:.2g}, output std {expected.std():.2g}")
    assert error <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 768, 1024])  # The last is SDXL's.
def test_vae(side: int, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL as Reference

    torch.manual_seed(0)
    reference = perturbed(Reference(**plain(VAE)))
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    latents = rng.standard_normal((1, 4, side // 8, side // 8)).astype(np.float32)
    with torch.no_grad():
        posterior = reference.encode(torch.tensor(images)).latent_dist
        decoded = reference.decode(torch.tensor(latents)).sample.numpy()
    mean, std = posterior.mean.numpy(), posterior.std.numpy()
    reference.save_pretrained(tmp_path)
    del reference, posterior
    gc.collect()

    vae = AutoencoderKL(VaeConfig.from_dict(VAE))
    shape = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = {"params": read_params(tmp_path, abstract_params(vae, shape), rename_vae_key)}
    found = jax.jit(lambda p, x: vae.apply(p, x, method="encode"))(params, nhwc(images))
    image = jax.jit(lambda p, z: vae.apply(p, z, method="decode"))(params, nhwc(latents))
    errors = (relative(found[0], mean), relative(found[1], std), relative(image, decoded))
    print(f"\nVAE at {side}: mean, std, image: {', '.join(f'{error:.2g}' for error in errors)}")
    assert max(errors) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sd2-v"])
def test_twenty_steps_at_256_pixels(name: str, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    configs = MODELS[name]
    tokenizer = CLIPTokenizer.from_pretrained(tiny_pipeline_folder / "tokenizer")
    tokenizer.model_max_length = 77
    torch.manual_seed(0)
    oracle = diffusers.StableDiffusionPipeline(
        perturbed(diffusers.AutoencoderKL(**plain(configs["vae"]))),
        perturbed(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))),
        tokenizer,
        perturbed(diffusers.UNet2DConditionModel(**plain(configs["unet"] | {"sample_size": 32}))),
        # `from_config` leaves out what the class does not know, as loading the folder does.
        getattr(diffusers, configs["scheduler"]["_class_name"]).from_config(configs["scheduler"]),
        None,
        None,
        requires_safety_checker=False,
    )
    oracle.set_progress_bar_config(disable=True)
    folder = tmp_path / "model"
    oracle.save_pretrained(folder)
    noise = np.random.default_rng(3).standard_normal((32, 32, 4)).astype(np.float32)
    prompt = "a photo of a dog on the beach"
    drawn = oracle(
        prompt,
        latents=torch.tensor(noise.transpose(2, 0, 1)[None]),
        num_inference_steps=20,
        guidance_scale=7.5,
    ).images[0]
    theirs = np.asarray(drawn).astype(float)
    del oracle
    gc.collect()

    pipeline = load_pipeline(folder)
    np.testing.assert_array_equal(initial_noise(pipeline, [3])[0], noise)
    ours = generate(pipeline, [prompt], [3], steps=20, guidance=7.5)[0]
    shutil.rmtree(folder)
    error = np.square(ours - theirs).mean()
    psnr = 10 * np.log10(255**2 / max(error, 1e-9))
    cut = np.isin(theirs, (0, 255)).mean()
    print(f"\n{name}: PSNR {psnr:.1f} dB, image std {theirs.std():.0f}, {cut:.1%} black or white")
    assert theirs.std() > 20
    assert cut < 0.5
    assert psnr >= 40
