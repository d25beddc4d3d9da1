"""Convolutions and group normalisation against exact ones; doubling to odd sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emcid_jax.models.blocks import GroupNorm, Upsample, conv3x3


def test_group_norm_matches_float64_when_the_mean_is_large() -> None:
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((2, 4, 5, 12))).astype(np.float32)
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)
    params = {"params": {"scale": scale, "bias": bias}}
    actual = jax.jit(GroupNorm(4, 1e-5).apply)(params, jnp.asarray(x))

    groups = x.astype(np.float64).reshape(2, 20, 4, 3)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_upsampling_to_an_odd_size_repeats_the_pixels_torch_repeats() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 2)).astype(np.float32)
    centre = np.zeros((3, 3, 2, 2), np.float32)
    centre[1, 1] = np.eye(2)
    params = {"params": {"conv": {"kernel": centre, "bias": np.zeros(2, np.float32)}}}
    actual = jax.jit(lambda x: Upsample(2).apply(params, x, (7, 11)))(jnp.asarray(x))
    doubled = torch.nn.functional.interpolate(torch.tensor(x.transpose(0, 3, 1, 2)), size=(7, 11))
    np.testing.assert_array_equal(actual, doubled.numpy().transpose(0, 2, 3, 1))


# A CPU multiplies patches where there are fewer pixels than output channels, as in the first.
@pytest.mark.parametrize(("out", "stride"), [(96, 1), (8, 1), (96, 2)])
def test_convolutions_and_their_gradients_are_torchs(out: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 7, 6)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 6, out)).astype(np.float32)
    params = {"params": {"kernel": kernel, "bias": np.zeros(out, np.float32)}}
    conv = conv3x3(out, "conv", jnp.float32, stride)
    found, pullback = jax.vjp(lambda x: conv.apply(params, x), jnp.asarray(x))

    images = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64)
    expected = torch.nn.functional.conv2d(images, weight, stride=stride, padding=1)
    (gradient,) = torch.autograd.grad(expected.square().sum() / 2, images)
    np.testing.assert_allclose(found, expected.detach().permute(0, 2, 3, 1), atol=1e-4)
    (ours,) = pullback(found)
    np.testing.assert_allclose(ours, gradient.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-3)
    dots = str(jax.make_jaxpr(lambda x: conv.apply(params, x))(x)).count("dot_general")
    assert dots == (out >= 2 * 5 * 7 and stride == 1)
