"""LPIPS against its formula in PyTorch, with random weights through a file."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emcid_jax.models.scoring.lpips import Lpips, read_lpips
from emcid_jax.runtime.errors import UserError

SLICES = ((0, 0), (3, 1), (6, 2), (8, 3), (10, 4))
"""Place of each convolution in torchvision's `alexnet().features`, and its slice in LPIPS."""


def alexnet_features() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@torch.no_grad()
def distances(
    net: nn.Sequential, weights: list[torch.Tensor], a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    shift, scale = (
        torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    a, b = ((x - shift) / scale for x in (a, b))
    total = torch.zeros(len(a))
    starts = [place for place, _ in SLICES]
    for i, layer in enumerate(net):
        a, b = layer(a), layer(b)
        if i - 1 in starts:
            unit_a, unit_b = (nn.functional.normalize(x, dim=1) for x in (a, b))
            weight = weights[starts.index(i - 1)]
            total += torch.einsum("nchw,c->nhw", (unit_a - unit_b) ** 2, weight).mean((1, 2))
    return total


def test_distances_equal_pytorch(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = alexnet_features()
        weights = [torch.rand(net[place].weight.shape[0]) for place, _ in SLICES]
    stored = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for (place, number), weight in zip(SLICES, weights, strict=True):
        for leaf in ("weight", "bias"):
            stored[f"net.slice{number + 1}.{place}.{leaf}"] = getattr(net[place], leaf).data
        for name in (f"lin{number}", f"lins.{number}"):
            stored[f"{name}.model.1.weight"] = weight[None, :, None, None].clone()
    save_file(stored, tmp_path / "lpips.safetensors")
    params = read_lpips(tmp_path / "lpips.safetensors")
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 3, 64, 48, 3)).astype(np.float32)
    b[2] = a[2]
    ours = jax.jit(Lpips().apply)({"params": params}, a, b)
    theirs = distances(net, weights, *(torch.tensor(x).permute(0, 3, 1, 2) for x in (a, b)))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4)
    assert ours[2] == 0 < ours[0] != ours[1]


def test_unfit_files_and_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"alex.pth: no .safetensors file; write one where"):
        read_lpips(tmp_path / "alex.pth")
    tiny = jnp.zeros((1, 30, 64, 3))
    with pytest.raises(ValueError, match="give at least 31 x 31"):
        jax.eval_shape(Lpips().init, jax.random.key(0), tiny, tiny)
