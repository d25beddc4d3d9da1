"""Convolutions and group normalisation against exact ones; doubling to odd sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array

from emcid_jax.models.image.blocks import GroupNorm, LayerNorm, Upsample, conv3x3


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


def test_group_norms_gradients_are_torchs() -> None:
    rng = np.random.default_rng(0)
    x, change = 3 + 2 * rng.standard_normal((2, 3, 5, 4, 12)).astype(np.float32)
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)

    def apply(x: Array, scale: Array, bias: Array) -> Array:
        return GroupNorm(4, 1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)

    found, pullback = jax.vjp(apply, *map(jnp.asarray, (x, scale, bias)))
    inputs = [
        torch.tensor(part, dtype=torch.float64, requires_grad=True)
        for part in (x.transpose(0, 3, 1, 2), scale, bias)
    ]
    expected = torch.nn.functional.group_norm(inputs[0], 4, *inputs[1:], eps=1e-5)
    np.testing.assert_allclose(found, expected.detach().permute(0, 2, 3, 1), atol=1e-5)
    into = torch.tensor(change.transpose(0, 3, 1, 2), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, inputs, into)
    for ours, theirs in zip(
        pullback(jnp.asarray(change)), (wanted[0].permute(0, 2, 3, 1), *wanted[1:]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layer_norm_and_its_gradients_are_torchs() -> None:
    rng = np.random.default_rng(0)
    x, change = 3 + 2 * rng.standard_normal((2, 3, 5, 12)).astype(np.float32)
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)

    def apply(x: Array, scale: Array, bias: Array) -> Array:
        return LayerNorm(1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)

    found, pullback = jax.vjp(apply, *map(jnp.asarray, (x, scale, bias)))
    inputs = [
        torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (x, scale, bias)
    ]
    expected = torch.nn.functional.layer_norm(inputs[0], (12,), *inputs[1:], eps=1e-5)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    wanted = torch.autograd.grad(expected, inputs, torch.tensor(change, dtype=torch.float64))
    for ours, theirs in zip(pullback(jnp.asarray(change)), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_upsampling_to_an_odd_size_repeats_the_pixels_torch_repeats() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 2)).astype(np.float32)
    centre = np.zeros((3, 3, 2, 2), np.float32)
    centre[1, 1] = np.eye(2)
    params = {"params": {"conv": {"kernel": centre, "bias": np.zeros(2, np.float32)}}}
    actual = jax.jit(lambda x: Upsample(2).apply(params, x, (7, 11)))(jnp.asarray(x))
    doubled = torch.nn.functional.interpolate(torch.tensor(x.transpose(0, 3, 1, 2)), size=(7, 11))
    np.testing.assert_array_equal(actual, doubled.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("shape", "channels", "stride", "products"),
    [
        ((2, 5, 7), (6, 96), 1, 1),  # few pixels: one product of patches
        ((2, 5, 7), (256, 256), 1, 1),
        ((2, 15, 17), (250, 270), 1, 16),  # tiles, the last of them cut
        ((1, 130, 67), (256, 256), 1, 16),  # in bands
        ((2, 15, 17), (40, 33), 1, 0),
        ((2, 15, 17), (256, 256), 2, 0),
    ],
)
def test_convolutions_and_their_gradients_are_torchs(
    shape: tuple[int, ...], channels: tuple[int, int], stride: int, products: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, channels[0])).astype(np.float32)
    kernel = rng.standard_normal((3, 3, *channels)).astype(np.float32)
    conv = conv3x3(channels[1], "conv", jnp.float32, stride)

    def apply(x: Array, kernel: Array) -> Array:
        return conv.apply({"params": {"kernel": kernel, "bias": np.zeros(channels[1])}}, x)

    found, pullback = jax.vjp(apply, jnp.asarray(x), jnp.asarray(kernel))
    images = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv2d(images, weight, stride=stride, padding=1)
    gradients = torch.autograd.grad(expected.square().sum() / 2, (images, weight))
    wanted = expected.detach().permute(0, 2, 3, 1), gradients[0].permute(0, 2, 3, 1)
    wanted += (gradients[1].permute(2, 3, 1, 0),)
    for ours, theirs in zip((found, *pullback(found)), wanted, strict=True):
        error = np.abs(np.asarray(ours) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < 1e-5
    assert str(jax.make_jaxpr(apply)(x, kernel)).count("dot_general") == products


def test_many_images_are_convolved_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 2, 14, 15, 256)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 256, 256)) / 40, jnp.float32)
    params = {"params": {"kernel": kernel, "bias": jnp.zeros(256)}}
    conv = conv3x3(256, "conv", jnp.float32)

    def loss(x: Array) -> Array:
        return jnp.sin(conv.apply(params, x)).sum()

    together = jax.vmap(jax.grad(loss))(x)
    alone = jnp.stack([jax.grad(loss)(one) for one in x])
    np.testing.assert_allclose(together, alone, atol=1e-4)
