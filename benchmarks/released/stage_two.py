"""Stage II as released: two passes of everything and an LU solve per layer (docs/method.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.released.model import block, tokens
from emcid_jax.config import StageTwoConfig


@torch.no_grad()
def solve(
    pipe: Any,
    prompts: list[list[str]],
    positions: np.ndarray,
    memories: np.ndarray,
    moments: Mapping[int, np.ndarray],
    config: StageTwoConfig,
) -> dict[int, np.ndarray]:
    """Layer -> dW of `mlp.fc2`; the model is restored before this returns.

    Args:
        pipe: the model.
        prompts: [concept][prompt], all concepts with equally many.
        positions: last subject token, [concept, prompt].
        memories: [concept, dim].
        moments: layer -> E[k k^T].
        config: layers, lambda and alpha; the residual is the released one whatever it says.
    """
    targets = torch.from_numpy(memories).T.double()
    columns = torch.from_numpy(positions.reshape(-1)).long()
    keep, write = (1 - config.edit_weight) / 0.5, config.edit_weight / 0.5
    deltas: dict[int, np.ndarray] = {}
    pristine: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(config.layers):
        fc2 = block(pipe, layer).mlp.fc2
        pristine[layer] = fc2.weight.detach().clone()
        keys = _means(pipe, fc2, prompts, columns, 0).T.double()
        current = _means(pipe, fc2, prompts, columns, 1).T.double()
        residual = (targets - current) * math.sqrt(write) / (len(config.layers) - index)
        keys = keys * math.sqrt(write)
        moment = torch.from_numpy(moments[layer]).double() * keep
        system = config.preservation_weight * moment + keys @ keys.T
        change = residual @ torch.linalg.solve(system, keys).T
        fc2.weight.copy_(pristine[layer] + change.float())
        deltas[layer] = change.numpy()
    for layer, weight in pristine.items():
        block(pipe, layer).mlp.fc2.weight.copy_(weight)
    return deltas


def _means(
    pipe: Any, fc2: Any, prompts: list[list[str]], columns: torch.Tensor, which: int
) -> torch.Tensor:
    """fc2's input (0) or output (1) at the subject, mean over each concept's prompts."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept.append((inputs[0], output)[which])

    hook = fc2.register_forward_hook(keep)
    pipe.text_encoder(**tokens(pipe, [prompt for row in prompts for prompt in row]))
    hook.remove()
    rows = kept[0][torch.arange(len(columns)), columns]
    return rows.reshape(len(prompts), -1, rows.shape[-1]).mean(dim=1)
