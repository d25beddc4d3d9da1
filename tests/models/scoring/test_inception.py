"""InceptionV3's FID features against PyTorch, with random weights through a file."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file

from emcid_jax.evaluation.judges.features import inception_features
from emcid_jax.models.scoring.inception import InceptionV3, read_inception
from emcid_jax.models.weights.params import abstract_params, to_hf
from emcid_jax.runtime.errors import UserError


def random_weights() -> dict[str, torch.Tensor]:
    """A whole checkpoint, under which every layer's output keeps its size."""
    pixels = jax.ShapeDtypeStruct((1, 80, 80, 3), jnp.float32)
    shapes = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
        abstract_params(InceptionV3(), pixels),
    )
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, array in to_hf(shapes).items():
        noise = torch.randn(array.shape, generator=generator)
        if array.ndim == 4:
            found[name] = (2 / noise[0].numel()) ** 0.5 * noise
        else:
            ones = name.endswith((".running_var", ".weight"))
            found[name] = ones + 0.1 * (noise.abs() if ones else noise)
            found[name.rpartition(".")[0] + ".num_batches_tracked"] = torch.tensor(7)
    found["fc.weight"], found["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    return found


@torch.no_grad()
def features(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The same features in PyTorch, of images (image, 3, height, width)."""
    halving = ("Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3")
    halving += ("Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4")
    valid = (*halving, "Conv2d_2a_3x3", "Conv2d_4a_3x3")

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        kernel = weights[f"{name}.conv.weight"]
        padding = [0, 0] if name in valid else [k // 2 for k in kernel.shape[2:]]
        x = F.conv2d(x, kernel, stride=2 if name in halving else 1, padding=padding)
        mean, var, scale, bias = (
            weights[f"{name}.bn.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-3).relu()

    def branches(block: str, x: torch.Tensor, *paths: str) -> list[torch.Tensor]:
        found = []
        for path in paths:
            y = x
            for name in path.split():
                y = conv(f"Mixed_{block}.{name}", y)
            found.append(y)
        return found

    def average(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x)))
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for block in ("5b", "5c", "5d"):
        own = branches(
            block, x, "branch1x1", "branch5x5_1 branch5x5_2",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
        )  # fmt: skip
        x = torch.cat([*own, *branches(block, average(x), "branch_pool")], 1)
    own = branches("6a", x, "branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")
    x = torch.cat([*own, F.max_pool2d(x, 3, 2)], 1)
    for block in ("6b", "6c", "6d", "6e"):
        own = branches(
            block, x, "branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3",
            "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
        )  # fmt: skip
        x = torch.cat([*own, *branches(block, average(x), "branch_pool")], 1)
    own = branches(
        "7a", x, "branch3x3_1 branch3x3_2",
        "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    )  # fmt: skip
    x = torch.cat([*own, F.max_pool2d(x, 3, 2)], 1)
    for block in ("7b", "7c"):
        own = branches(
            block, x, "branch1x1", "branch3x3_1 branch3x3_2a", "branch3x3_1 branch3x3_2b",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3b",
        )  # fmt: skip
        pooled = average(x) if block == "7b" else F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([*own, *branches(block, pooled, "branch_pool")], 1)
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    found = random_weights()
    save_file(found, file)
    return file, found


def test_features_equal_pytorch(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    file, tensors = weights
    params = read_inception(file)
    # torchvision's 27,161,264 less its auxiliary head (3,326,696) and its classifier (2,049,000),
    # and the statistics, which it does not count.
    statistics = sum(t.numel() for name, t in tensors.items() if "running" in name)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count - statistics == 21_785_568
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 83, 107, 3)).astype(np.float32)
    ours = jax.jit(InceptionV3().apply)({"params": params}, pixels)
    theirs = features(tensors, torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert theirs.std() > 0.1


def test_unfit_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pickled weights .* convert them .*x\.safetensors'\)"):
        read_inception(tmp_path / "x.pth")
    with pytest.raises(UserError, match="no such file; give InceptionV3's weights"):
        read_inception(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="give at least 75 x 75"):
        jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, 74, 90, 3)))


@pytest.mark.slow
def test_full_size_features_equal_torch_fidelity(
    weights: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """Images of FID's own size, so that nothing is resized; the package alone, no torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("pip install --no-deps torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["torch_fidelity"] = package  # Its own imports torchvision.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file, tensors = weights
    kept = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3("x", ["2048"], str(tmp_path / "inception.pth"))
    images = np.random.default_rng(1).integers(0, 256, (4, 299, 299, 3), np.uint8)
    ours = inception_features(file)(images, batch=2)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2))[0].numpy()
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"\nInceptionV3, 299 px: max. relative error {error:.1e}")
    assert error <= 1e-4
    assert expected.std() > 0.1
