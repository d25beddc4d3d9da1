"""The ViT classifier against transformers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from emcid_jax.models.scoring.vit import ViTConfig, ViTForImageClassification, disk_name
from emcid_jax.models.weights.params import abstract_params, read_params, to_hf, write_params
from emcid_jax.runtime.errors import UserError

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
}


def save_random(folder, **options):
    """A random classifier with `transformers`, with the extras that some checkpoints carry."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**TINY, num_labels=7, **options)
    model = transformers.ViTForImageClassification(config)
    for name, tensor in model.state_dict().items():
        tensor.copy_(0.2 * torch.randn(tensor.shape) + float("norm" in name and "weight" in name))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    extras = {"vit.pooler.dense.bias": torch.ones(32), "vit.embeddings.mask_token": torch.ones(1)}
    save_file(load_file(file) | extras, file, metadata={"format": "pt"})
    return model.eval()


def load(folder):
    config = ViTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    module = ViTForImageClassification(config)
    side = config.image_size
    abstract = abstract_params(module, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    return module, read_params(folder, abstract, disk_name)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False, "hidden_act": "quick_gelu"}])
def test_logits_equal_transformers(options, tmp_path):
    theirs = save_random(tmp_path, **options)
    module, params = load(tmp_path)
    images = np.random.default_rng(1).uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
    ours = jax.jit(module.apply)({"params": params}, jnp.asarray(images))
    expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).logits.detach().numpy()
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_written_classifier_loads_in_transformers(tmp_path):
    theirs = save_random(tmp_path)
    _, params = load(tmp_path)
    write_params(tmp_path / "model.safetensors", params)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


def test_full_size_file_names_and_shapes_equal_transformers(tmp_path):
    """google/vit-base-patch16-224, from its config alone; names as `save_pretrained` writes."""
    values = {"id2label": {str(n): f"label {n}" for n in range(1000)}, "patch_size": 16}
    ours = abstract_params(
        ViTForImageClassification(ViTConfig.from_dict(values)),
        jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
    )
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), ours)
    shapes = {name: array.shape for name, array in to_hf(zeros).items()}
    assert sum(np.prod(shape) for shape in shapes.values()) == 86_567_656  # its model card

    config = transformers.ViTConfig(num_labels=1000, num_hidden_layers=1)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    one_block = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    blocks = {
        name.replace("layer.0.", f"layer.{block}."): shape
        for name, shape in one_block.items()
        for block in range(12)
    }
    assert shapes == blocks


def test_bad_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="image_size 25 is not a multiple of patch_size 8"):
        ViTConfig.from_dict(TINY | {"image_size": 25})
    with pytest.raises(UserError, match="num_labels is 0"):
        ViTConfig.from_dict(TINY | {"num_labels": 0})
    save_random(tmp_path)
    module, params = load(tmp_path)
    with pytest.raises(ValueError, match=r"images are \(32, 32, 3\)"):
        module.apply({"params": params}, jnp.zeros((1, 32, 32, 3)))
