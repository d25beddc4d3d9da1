"""Tiny text encoders that transformers wrote, prompts for them, and every state of theirs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, disk_name
from emcid_jax.models.weights.params import abstract_params, read_params

VOCABULARY, TOKENS, BLOCKS, DIM = 100, 12, 4, 32
END = VOCABULARY - 1
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": DIM,
    "intermediate_size": 80,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def save_random(folder, activation="gelu", eos=2):
    """A random text encoder in the published layout: `text_model.*` and an old index buffer."""
    config = transformers.CLIPTextConfig(**TINY, hidden_act=activation, eos_token_id=eos)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in transformers.CLIPTextModel(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        # Large enough that every bias, norm and activation matters.
        tensors[f"text_model.{name}"] = 0.2 * noise + float("norm" in name and "weight" in name)
    tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_ours(folder, projection=False):
    """Our module of the folder's config, and its parameters."""
    config = ClipTextConfig.from_dict(json.loads((folder / "config.json").read_text()))
    ours = ClipTextModel(config, projection=projection)
    abstract = abstract_params(ours, jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    return ours, read_params(folder, abstract, disk_name)


def load_both(folder):
    return *read_ours(folder), transformers.CLIPTextModel.from_pretrained(folder).eval()


def prompts(end=END):
    """Three prompts of 4, 7 and 12 tokens, and their mask; ids above `end` follow the end."""
    rng = np.random.default_rng(3)
    ids = rng.integers(58, 98, (3, TOKENS))
    ids[:, 0] = 1
    mask = np.ones_like(ids)
    for row, length in enumerate((4, 7, TOKENS)):
        ids[row, 1 : length - 1] = rng.integers(3, 56, length - 2)
        ids[row, length - 1] = end
        mask[row, length:] = 0
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32)


def torch_states(model, ids, mask=None, edit=None):
    """Outputs, block outputs, fc2 inputs and fc2 outputs of transformers, through hooks."""
    hidden, keys, values, handles = [], [], [], []
    for index, layer in enumerate(model.encoder.layers):

        def after_block(_, __, output, index=index):
            if edit is not None and index == edit[0]:
                output = output.clone()
                for row, place in enumerate(edit[1].tolist()):
                    output[row, place] = output[row, place] + edit[2][row]
            hidden.append(output)
            return output

        def after_fc2(_, inputs, output):
            keys.append(inputs[0])
            values.append(output)

        handles.append(layer.register_forward_hook(after_block))
        handles.append(layer.mlp.fc2.register_forward_hook(after_fc2))
    try:
        out = model(
            torch.tensor(np.asarray(ids)).long(),
            attention_mask=None if mask is None else torch.tensor(np.asarray(mask)),
        )
    finally:
        for handle in handles:
            handle.remove()
    return out, hidden, keys, values


def assert_same(ours, states, most=1e-4):
    out, hidden, keys, values = states
    assert relative_error(ours.last_hidden_state, out.last_hidden_state) <= most
    assert relative_error(ours.pooled, out.pooler_output) <= most
    for mine, other in ((ours.hidden, hidden), (ours.keys, keys), (ours.values, values)):
        assert len(mine) == len(other) == BLOCKS
        for index in range(BLOCKS):
            assert relative_error(mine[index], other[index]) <= most
