"""The attention loss's oracle: diffusers' own attention layers, in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from emcid_jax.editing.stage_one import attention

Asked = list[tuple[torch.nn.Module, torch.Tensor]]
"""Attention layers, each with queries to it."""


def queries(
    unet: torch.nn.Module,
    latent_size: Sequence[int],
    predict: Callable[[torch.Tensor, np.ndarray], object],
) -> Asked:
    """The layers that read the text, in the order of their names, and queries, by hooks.

    `predict(latents, timesteps)` runs the UNet on as many empty prompts as there are latents.
    """
    count = attention.PICTURES
    noise = [np.random.default_rng(seed).standard_normal(latent_size) for seed in range(count)]
    named = [(name, part) for name, part in unet.named_modules() if name.endswith("attn2")]
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, part in named:
        keep = functools.partial(lambda name, _, __, out: found.update({name: out}), name)
        handles.append(part.to_q.register_forward_hook(keep))
    latents = torch.as_tensor(np.asarray(noise, np.float32), dtype=torch.float64)
    with torch.no_grad():
        predict(latents.permute(0, 3, 1, 2), np.linspace(0, 999, count).round())
    for handle in handles:
        handle.remove()
    layers = []
    for name, part in sorted(named, key=lambda pair: pair[0].split(".")):
        rows = found[name].flatten(0, 1)
        chosen = np.linspace(0, len(rows) - 1, attention.QUERIES).round().astype(int)
        layers.append((part, rows[chosen]))
    return layers


def errors(layers: Asked, states: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Per layer the mean square between the answers to two texts [token, dim]."""
    pairs = [(_answers(*one, states), _answers(*one, goal)) for one in layers]
    return torch.stack([torch.nn.functional.mse_loss(*pair) for pair in pairs])


def _answers(part: torch.nn.Module, query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What a layer reads, without its bias."""

    def split(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(-1, (part.heads, -1)).transpose(0, 1)

    key, value = split(part.to_k(states)), split(part.to_v(states))
    read = torch.nn.functional.scaled_dot_product_attention(split(query), key, value)
    return read.transpose(0, 1).flatten(1) @ part.to_out[0].weight.T
