"""The CLIP image tower against transformers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from emcid_jax.models.scoring.clip_vision import (
    ClipVisionConfig,
    ClipVisionModelWithProjection,
    disk_name,
)
from emcid_jax.models.weights.params import abstract_params, read_params, to_hf, write_params
from emcid_jax.runtime.errors import UserError

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": 20,
}
VIT_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(0.2 * noise + float("norm" in name and "weight" in name))
    return model.eval()


def load(folder):
    config = ClipVisionConfig.from_dict(json.loads((folder / "config.json").read_text()))
    module = ClipVisionModelWithProjection(config)
    side = config.image_size
    abstract = abstract_params(module, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    return module, read_params(folder, abstract, disk_name)


def pictures():
    return np.random.default_rng(1).uniform(-2, 2, (3, 24, 24, 3)).astype(np.float32)


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_and_states_equal_transformers(activation, tmp_path):
    config = transformers.CLIPVisionConfig(**TINY, hidden_act=activation)
    theirs = randomise(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    module, params = load(tmp_path)
    ours = jax.jit(module.apply)({"params": params}, jnp.asarray(pictures()))
    expected = theirs(torch.tensor(pictures().transpose(0, 3, 1, 2)))
    assert_close(ours.image_embeds, expected.image_embeds)
    assert_close(ours.last_hidden, expected.last_hidden_state)


def test_image_half_of_a_whole_clip_model(tmp_path):
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    inner = {name: value for name, value in TINY.items() if name != "projection_dim"}
    config = transformers.CLIPConfig(text_config=text, vision_config=inner, projection_dim=20)
    theirs = randomise(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    module, params = load(tmp_path)
    ours = module.apply({"params": params}, jnp.asarray(pictures()))
    pixels = torch.tensor(pictures().transpose(0, 3, 1, 2))
    features = theirs.get_image_features(pixels)
    assert_close(ours.image_embeds, getattr(features, "pooler_output", features))


def test_written_tower_loads_in_transformers(tmp_path):
    config = transformers.CLIPVisionConfig(**TINY)
    theirs = randomise(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    _, params = load(tmp_path)
    write_params(tmp_path / "model.safetensors", params)
    loaded = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


def test_full_size_names_and_shapes_equal_transformers():
    ours = abstract_params(
        ClipVisionModelWithProjection(ClipVisionConfig.from_dict(VIT_L)),
        jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
    )
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), ours)
    with torch.device("meta"):
        config = transformers.CLIPVisionConfig(**VIT_L)
        theirs = transformers.CLIPVisionModelWithProjection(config)
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: array.shape for name, array in to_hf(zeros).items()} == expected


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="image_size 224 is not a multiple of patch_size 15"):
        ClipVisionConfig.from_dict({"vision_config": VIT_L | {"patch_size": 15}})
    module = ClipVisionModelWithProjection(ClipVisionConfig.from_dict(TINY))
    with pytest.raises(ValueError, match=r"images are \(16, 24, 3\)"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
