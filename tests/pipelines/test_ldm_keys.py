"""Key names of single files against diffusers' own converters, tiny and at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as oracle
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.clip import disk_name
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.pipelines import ldm_keys, single_file
from emcid_jax.pipelines.published_configs import default_configs

TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
}
SIZES = pytest.mark.parametrize(
    "version", [0, 1, 2, "xl", "refiner"], ids=["tiny", "sd1", "sd2", "xl", "refiner"]
)


def state_of(cls: Any, config: dict[str, Any], version: Any) -> dict[str, torch.Tensor]:
    """Names and tensors of a model; at full size without any content."""
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta" if version else "cpu"):
        return cls.from_config(fields).state_dict()


def configs_of(version: Any) -> dict[str, dict[str, Any]]:
    if version:
        return default_configs(version, "epsilon")
    return {"unet": TINY_UNET, "vae": TINY_VAE}


def assert_same(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    for name, tensor in found.items():
        assert tensor.is_meta or torch.equal(tensor, state[name]), name


@SIZES
def test_unet_names_lead_diffusers_back_to_its_own(version: Any) -> None:
    config = configs_of(version)["unet"]
    state = state_of(UNet2DConditionModel, config, version)
    ours = UNetConfig.from_dict(config)
    stored = {ldm_keys.locate_unet(name, ours).key: tensor for name, tensor in state.items()}
    assert len(stored) == len(state)
    assert_same(oracle.convert_ldm_unet_checkpoint(stored, config), state)


@SIZES
def test_vae_names_lead_diffusers_back_to_its_own(version: Any) -> None:
    config = configs_of(version)["vae"]
    state = state_of(AutoencoderKL, config, version)
    ours = VaeConfig.from_dict(config)
    stored = {ldm_keys.locate_vae(name, ours).key: tensor for name, tensor in state.items()}
    assert len(stored) == len(state)
    assert_same(oracle.convert_ldm_vae_checkpoint(stored, config), state)


def text_state(
    config: dict[str, Any], meta: bool, cls: Any = CLIPTextModel
) -> tuple[Any, dict[str, torch.Tensor]]:
    with torch.device("meta" if meta else "cpu"):
        model = cls(CLIPTextConfig(**config))
    named = {disk_name(name): tensor.detach() for name, tensor in model.named_parameters()}
    return model, named


TINY_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
}


@pytest.mark.parametrize("full", [False, True], ids=["tiny", "full"])
def test_clip_names_lead_diffusers_back_to_its_own(full: bool) -> None:
    config = default_configs(1, "epsilon")["text_encoder"] if full else TINY_TEXT
    _, state = text_state(config, meta=full)
    stored = {
        ldm_keys.locate_text(name, FIRST, 1, ()).key: tensor for name, tensor in state.items()
    }
    assert_same(oracle.convert_ldm_clip_checkpoint(stored), state)
    short = {key.replace("text_model.", ""): tensor for key, tensor in stored.items()}
    assert {ldm_keys.locate_text(name, FIRST, 1, short).key for name in state} == set(short)


@pytest.mark.parametrize("full", [False, True], ids=["tiny", "full"])
def test_open_clip_names_lead_diffusers_back_to_its_own(full: bool) -> None:
    config = default_configs(2, "epsilon")["text_encoder"] if full else TINY_TEXT
    model, state = text_state(config, meta=full)
    thirds: dict[str, dict[int | None, torch.Tensor]] = {}
    for name, tensor in state.items():
        place = ldm_keys.locate_text(name, FIRST, 2, ())
        thirds.setdefault(place.key, {})[place.third] = tensor
    stored = {
        key: torch.cat([found[0], found[1], found[2]]) if 0 in found else found[None]
        for key, found in thirds.items()
    }
    assert_same(oracle.convert_open_clip_checkpoint(model, stored), state)


@pytest.mark.parametrize(("version", "start"), [("xl", 1), ("refiner", 0)])
@pytest.mark.parametrize("full", [False, True], ids=["tiny", "full"])
def test_projected_open_clip_names_lead_diffusers_back_to_its_own(
    full: bool, version: Any, start: int
) -> None:
    tiny = TINY_TEXT | {"projection_dim": 10}
    config = default_configs(version, "epsilon")[SECOND] if full else tiny
    model, state = text_state(config, full, CLIPTextModelWithProjection)
    stored: dict[str, Any] = {}
    for name, tensor in state.items():
        place = ldm_keys.locate_text(name, SECOND, version, ())
        if place.third is None:
            stored[place.key] = tensor.T if place.transposed else tensor
        else:
            stored.setdefault(place.key, [None] * 3)[place.third] = tensor
    stored = {k: torch.cat(t) if isinstance(t, list) else t for k, t in stored.items()}
    prefix = f"conditioner.embedders.{start}.model."
    assert all(key.startswith(prefix) for key in stored)
    assert_same(oracle.convert_open_clip_checkpoint(model, stored, prefix), state)


@pytest.mark.parametrize("version", [1, 2])
def test_default_configs_are_the_shapes_of_diffusers(version: ldm_keys.Version) -> None:
    configs = default_configs(version, "v_prediction")
    names = single_file.names_of(configs)
    for part, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        state = state_of(cls, configs[part], version)
        assert names[part] == {name: tuple(tensor.shape) for name, tensor in state.items()}
    _, state = text_state(configs["text_encoder"], meta=True)
    assert names["text_encoder"] == {name: tuple(t.shape) for name, t in state.items()}
    assert configs["unet"]["sample_size"] * 8 == configs["vae"]["sample_size"] == 768


def test_what_training_left_in_a_file_is_not_needed() -> None:
    text = "cond_stage_model.model."
    unused = [
        "alphas_cumprod",
        "model_ema.decay",
        "first_stage_model.loss.logvar",
        f"{text}logit_scale",
        f"{text}text_projection",
        f"{text}text_projection.weight",
        f"{text}transformer.resblocks.23.ln_1.weight",
    ]
    assert not any(ldm_keys.is_needed(key, 2, {FIRST: 23}) for key in unused)
    ids = "cond_stage_model.transformer.text_model.x.position_ids"
    assert not ldm_keys.is_needed(ids, 1, {FIRST: 12})
    assert ldm_keys.is_needed(f"{text}transformer.resblocks.22.ln_1.weight", 2, {FIRST: 23})
    assert ldm_keys.is_needed("model.diffusion_model.out.0.weight", 2, {FIRST: 23})
    blocks = {FIRST: 12, SECOND: 32}
    for key in (
        "conditioner.embedders.0.transformer.text_projection.weight",
        "conditioner.embedders.0.logit_scale",
        "conditioner.embedders.1.model.logit_scale",
        "v_pred",
    ):
        assert not ldm_keys.is_needed(key, "xl", blocks)
    for key in ("text_projection", "transformer.resblocks.31.ln_1.weight"):
        assert ldm_keys.is_needed(f"conditioner.embedders.1.model.{key}", "xl", blocks)
