"""The autoencoder against PyTorch diffusers, and checkpoints with the old attention layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from safetensors.torch import load_file, save_file

from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig, rename_vae_key
from emcid_jax.models.weights import params as weights
from emcid_jax.runtime.errors import UserError

TWO_BLOCKS = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.5,
    "sample_size": 16,
}
THREE_BLOCKS = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}
CASES = {"two": TWO_BLOCKS, "three": THREE_BLOCKS}


def reference_model(config: dict[str, Any]) -> TorchAutoencoderKL:
    torch.manual_seed(0)
    reference = TorchAutoencoderKL(**config).eval()
    for parameter in reference.parameters():  # norms start at 1 and 0, which would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return reference


def load(vae: AutoencoderKL, folder: Path) -> dict[str, Any]:
    abstract = weights.abstract_params(vae, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    return {"params": weights.read_params(folder, abstract, rename_vae_key)}


def relative(actual: jax.Array, expected: torch.Tensor) -> float:
    reference = expected.detach().numpy().transpose(0, 2, 3, 1)
    return float(np.abs(np.asarray(actual) - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("case", CASES)
def test_encode_and_decode_match_diffusers(case: str, tmp_path: Path) -> None:
    reference = reference_model(CASES[case])
    reference.save_pretrained(tmp_path)
    config = VaeConfig.from_dict(dict(reference.config))
    vae = AutoencoderKL(config)
    params = load(vae, tmp_path)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 3, 16, 24)).astype(np.float32)
    side = (16 // config.downscale, 24 // config.downscale)
    latents = rng.standard_normal((2, config.latent_channels, *side)).astype(np.float32)

    with torch.no_grad():
        posterior = reference.encode(torch.tensor(images)).latent_dist
        decoded = reference.decode(torch.tensor(latents)).sample
    encode = jax.jit(lambda x: vae.apply(params, x, method="encode"))
    decode = jax.jit(lambda z: vae.apply(params, z, method="decode"))
    mean, std = encode(jnp.asarray(images.transpose(0, 2, 3, 1)))
    image = decode(jnp.asarray(latents.transpose(0, 2, 3, 1)))

    errors = (
        relative(mean, posterior.mean),
        relative(std, posterior.std),
        relative(image, decoded),
    )
    print(case, errors)
    assert max(errors) <= 1e-4


def test_log_variance_is_clipped_like_diffusers(tmp_path: Path) -> None:
    reference = reference_model(TWO_BLOCKS)
    reference.quant_conv.bias.data[4:] = torch.tensor([-100.0, 100.0, 0.0, 0.0])
    reference.save_pretrained(tmp_path)
    vae = AutoencoderKL(VaeConfig.from_dict(TWO_BLOCKS))
    images = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        expected = reference.encode(images).latent_dist.std.numpy().transpose(0, 2, 3, 1)
    _, std = vae.apply(load(vae, tmp_path), jnp.zeros((1, 16, 16, 3)), method="encode")
    np.testing.assert_allclose(std, expected, rtol=1e-4)
    assert float(std[..., 0].max()) < 1e-6 < 1e4 < float(std[..., 1].min())


@pytest.mark.parametrize("convolutions", [False, True])
def test_attention_of_old_checkpoints_is_read(convolutions: bool, tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    reference_model(TWO_BLOCKS).save_pretrained(new)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", r"to_out\.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(new / "diffusion_pytorch_model.safetensors").items():
        for today, before in old_names.items():
            name = re.sub(rf"(mid_block\.attentions\.0)\.{today}\.", rf"\1.{before}.", name)
        # The oldest files have 1x1 convolutions where today's have linear layers.
        pointwise = convolutions and "attentions" in name and tensor.ndim == 2
        tensors[name] = tensor[:, :, None, None] if pointwise else tensor
    assert sum(t.ndim == 4 and "attentions" in n for n, t in tensors.items()) == 8 * convolutions
    assert sum("proj_attn" in name for name in tensors) == 4
    old.mkdir()
    save_file(tensors, old / "diffusion_pytorch_model.safetensors", {"format": "pt"})

    vae = AutoencoderKL(VaeConfig.from_dict(TWO_BLOCKS))
    jax.tree.map(np.testing.assert_array_equal, load(vae, old), load(vae, new))


def test_rename_leaves_other_names_alone() -> None:
    for name in ("encoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.bias", "key.value"):
        assert rename_vae_key(name) == name


@pytest.mark.parametrize("case", CASES)
def test_config_written_is_read_back_and_understood_by_diffusers(case: str) -> None:
    config = VaeConfig.from_dict(CASES[case])
    assert VaeConfig.from_dict(config.to_dict()) == config
    theirs = TorchAutoencoderKL.from_config(config.to_dict())
    assert VaeConfig.from_dict(dict(theirs.config)) == config


def test_empty_config_has_the_defaults_of_diffusers() -> None:
    assert VaeConfig.from_dict({}) == VaeConfig.from_dict(dict(TorchAutoencoderKL().config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"shift_factor": 0.1}, "shift_factor=0.1"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "AttnDownEnc"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries"),
        ({"norm_num_groups": 32}, "norm_num_groups=32"),
    ],
)
def test_unsupported_config_is_refused_by_field_and_value(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        VaeConfig.from_dict(TWO_BLOCKS | change)
