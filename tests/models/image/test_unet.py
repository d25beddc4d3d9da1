"""The UNet against PyTorch diffusers: outputs, gradient to the text, configs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from flax import traverse_util

from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.runtime.errors import UserError

SD1 = {
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 16,
    "sample_size": 8,
}
SD2 = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 40,
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "upcast_attention": True,
    "norm_num_groups": 32,
    "sample_size": 8,
}
ODD = {
    "block_out_channels": [24, 48],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "in_channels": 5,
    "out_channels": 3,
    "attention_head_dim": 3,
    "cross_attention_dim": 16,
    "only_cross_attention": [False, True],
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-4,
    "sample_size": 7,
}
SDXL = {
    "block_out_channels": [16, 32, 48],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4, 6],
    "cross_attention_dim": 40,
    "transformer_layers_per_block": [3, 1, 2],
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "sample_size": 8,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 12,
    "projection_class_embeddings_input_dim": 20 + 6 * 12,
}
# Attention at the two levels in the middle, five sizes.
REFINER = SDXL | {
    "block_out_channels": [24, 48, 72, 72],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": [2, 3, 6, 4],
    "cross_attention_dim": 20,
    "transformer_layers_per_block": 1,
    "addition_time_embed_dim": 9,
    "projection_class_embeddings_input_dim": 20 + 5 * 9,
}
# What a derived model may change: shallow levels, convolutions, the other order of sines.
DERIVED = SDXL | {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": [1, 2, 1],
    "transformer_layers_per_block": [3, 1, 2],
    "use_linear_projection": False,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "sd1": (SD1, (8, 16)),
    "sd2": (SD2, (8, 8)),
    "odd": (ODD, (7, 11)),
    "sdxl": (SDXL, (8, 8)),
    "refiner": (REFINER, (16, 8)),
    "derived": (DERIVED, (6, 8)),
}
# Original size, place of the crop, size to draw (the refiner: a score).
SIZES = np.array([[1024, 768, 0, 4, 1024, 1024], [512, 640, 3, 0, 768, 1280]], np.float32)


def params_from_torch(module: torch.nn.Module) -> dict[str, Any]:
    """The parameter tree of a torch module, by the naming rule and independently of the reader."""
    norms = {
        name
        for name, child in module.named_modules()
        if isinstance(child, (torch.nn.GroupNorm, torch.nn.LayerNorm))
    }
    flat = {}
    for name, tensor in module.state_dict().items():
        owner, leaf = name.rsplit(".", 1)
        value = tensor.numpy()
        if leaf == "weight" and owner in norms:
            leaf = "scale"
        elif leaf == "weight":
            leaf = "kernel"
            value = value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
        flat[(*_path(owner), leaf)] = value
    return {"params": traverse_util.unflatten_dict(flat)}


def _path(owner: str) -> list[str]:
    """Splits a module path, keeping an index (and what follows it in `net.0.proj`) in one key."""
    path: list[str] = []
    for part in owner.split("."):
        if part.isdigit() or (part == "proj" and path[-1] == "net.0"):
            path[-1] += f".{part}"
        else:
            path.append(part)
    return path


def relative(actual: Any, expected: torch.Tensor) -> float:
    reference = expected.detach().numpy()
    return float(np.abs(np.asarray(actual) - reference).max() / np.abs(reference).max())


def inputs(config: dict[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, config.get("in_channels", 4), *size)).astype(np.float32)
    text = rng.standard_normal((2, 6, config["cross_attention_dim"])).astype(np.float32)
    if "addition_embed_type" not in config:
        return latents, np.array([3, 871]), text
    count = UNetConfig.from_dict(config).size_count(20)
    sizes = SIZES[:, :count] if count == 6 else np.append(SIZES[:, :4], [[6.0], [2.5]], axis=1)
    pooled = rng.standard_normal((2, 20)).astype(np.float32)
    return latents, np.array([3, 871]), text, pooled, sizes.astype(np.float32)


# Compiling takes all the time, so the widest case is for the slow run.
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c == "derived" else c for c in CASES],
)
def test_noise_and_text_gradients_match_diffusers(case: str) -> None:
    config, size = CASES[case]
    torch.manual_seed(0)
    reference = UNet2DConditionModel(**config).eval()
    for parameter in reference.parameters():  # norms start at 1 and 0, which would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    latents, timesteps, text, *added = inputs(config, size)

    read = [torch.tensor(array, requires_grad=True) for array in (text, *added)]
    names = dict(zip(("text_embeds", "time_ids"), read[1:], strict=False))
    noise_torch = reference(
        torch.tensor(latents), torch.tensor(timesteps), read[0], added_cond_kwargs=names
    ).sample
    cotangent = torch.randn_like(noise_torch)
    gradients_torch = torch.autograd.grad(noise_torch, read[:2], cotangent)

    unet = UNet2DCondition(UNetConfig.from_dict(dict(reference.config)))
    params = params_from_torch(reference)

    @jax.jit
    def noise_and_gradients(*read: jax.Array) -> tuple[jax.Array, Any]:
        nhwc = jnp.asarray(latents.transpose(0, 2, 3, 1))
        noise, pullback = jax.vjp(
            lambda *states: unet.apply(params, nhwc, jnp.asarray(timesteps), *states), *read
        )
        return noise, pullback(jnp.asarray(cotangent.numpy().transpose(0, 2, 3, 1)))

    noise, gradients = noise_and_gradients(*map(jnp.asarray, (text, *added)))
    errors = (
        relative(noise.transpose(0, 3, 1, 2), noise_torch),
        *map(relative, gradients[:2], gradients_torch),
    )
    print(case, errors)
    assert max(errors) <= 1e-4


def test_parameters_are_exactly_those_of_diffusers() -> None:
    for config, size in CASES.values():
        reference = UNet2DConditionModel(**config)
        unet = UNet2DCondition(UNetConfig.from_dict(config))
        latents, *others = inputs(config, size)
        latents = latents.transpose(0, 2, 3, 1)
        tree = jax.eval_shape(unet.init, jax.random.key(0), latents, *others)
        shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
        assert shapes == jax.tree.map(lambda leaf: leaf.shape, params_from_torch(reference))


def test_bfloat16_stays_close_to_float32() -> None:
    config, size = CASES["odd"]
    latents, timesteps, text = inputs(config, size)
    arguments = tuple(map(jnp.asarray, (latents.transpose(0, 2, 3, 1), timesteps, text)))
    params = params_from_torch(UNet2DConditionModel(**config))
    exact, rough = (
        jax.jit(UNet2DCondition(UNetConfig.from_dict(config), dtype).apply)(params, *arguments)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rough.dtype == jnp.bfloat16
    error = jnp.abs(rough.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("case", CASES)
def test_config_written_is_read_back_and_understood_by_diffusers(case: str) -> None:
    config = UNetConfig.from_dict(CASES[case][0])
    assert UNetConfig.from_dict(config.to_dict()) == config
    theirs = UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConfig.from_dict(dict(theirs.config)) == config


def test_empty_config_has_the_defaults_of_diffusers() -> None:
    config = UNetConfig.from_dict({})
    assert dataclasses.replace(config, cross_attention_dim=(768,) * 4) == UNetConfig()
    assert config.cross_attention_dim == (1280,) * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'.*use None"),
        ({"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim is missing"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
            "projection_class_embeddings_input_dim is missing",
        ),
        ({"dual_cross_attention": True}, "dual_cross_attention=True"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "'AttnDownBlock2D'"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"act_fn": "gelu"}, "act_fn='gelu'.*'silu' or 'swish'"),
        ({"attention_head_dim": [2, 4, 8]}, "attention_head_dim has 3 entries"),
        ({"attention_head_dim": 5}, "5 heads"),
        ({"cross_attention_dim": [40, 48]}, "cross_attention_dim"),
        ({"norm_num_groups": 24}, "norm_num_groups=24"),
        ({"shiny_new_feature": True}, "unknown key shiny_new_feature"),
    ],
)
def test_unsupported_config_is_refused_by_field_and_value(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        UNetConfig.from_dict(SD2 | change)


@pytest.mark.parametrize(
    ("case", "pooled", "sizes", "message"),
    [
        ("sd2", 20, 6, "has no addition_embed_type: leave out pooled and time_ids"),
        ("sdxl", None, 6, "needs pooled and time_ids"),
        ("sdxl", 20, None, "needs pooled and time_ids"),
        ("sdxl", 20, 5, "time_ids has 5 entries; the UNet takes 6"),
        ("refiner", 20, 6, "time_ids has 6 entries; the UNet takes 5"),
        ("sdxl", 24, 6, "dim=92 is not 24, the width of the pooled text, and a multiple of .*=12"),
        ("sdxl", 92, 6, "dim=92 is not 92"),
    ],
)
def test_conditions_that_the_unet_does_not_take_are_refused(
    case: str, pooled: int | None, sizes: int | None, message: str
) -> None:
    config, size = CASES[case]
    latents, timesteps, text, *_ = inputs(config, size)
    added = [None if count is None else jnp.ones((2, count)) for count in (pooled, sizes)]
    unet = UNet2DCondition(UNetConfig.from_dict(config))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            unet.init, jax.random.key(0), latents.transpose(0, 2, 3, 1), timesteps, text, *added
        )


def test_irrelevant_keys_are_ignored() -> None:
    extra = {"_class_name": "x", "_diffusers_version": "0.6.0", "dropout": 0.1, "new": None}
    assert UNetConfig.from_dict(SD2 | extra) == UNetConfig.from_dict(SD2)
