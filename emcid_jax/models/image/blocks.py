"""Convolutional parts that the UNet and the autoencoder share, NHWC, diffusers' names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.image.normalisation import group_norm, layer_norm
from emcid_jax.models.kernels.convolution import convolve, pointwise


class GroupNorm(layers.Layer):
    """Group normalisation over height, width and the channels of a group, in float32.

    `(x - mean) / sqrt(var + eps) * scale + bias` (Wu & He 2018), with the biased variance.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Normalise; statistics in float32, result in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        exact = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
        pixels = x.astype(jnp.float32).reshape(x.shape[0], -1, channels)
        normal: Any = group_norm(pixels, *exact, self.groups, self.epsilon)
        return normal.reshape(x.shape).astype(self.dtype)


class LayerNorm(layers.Layer):
    """Layer normalisation over the channels, in float32: PyTorch's, with the biased variance."""

    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token channel"]
    ) -> Float[Array, "batch token channel"]:
        """Normalise; statistics in float32, result in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        exact = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
        normal: Any = layer_norm(x.astype(jnp.float32), *exact, self.epsilon)
        return normal.astype(self.dtype)


def conv3x3(channels: int, name: str, dtype: DTypeLike, stride: int = 1) -> layers.Conv:
    """3x3 convolution padded by 1 on every side, which for stride 2 differs from "SAME"."""
    return layers.Conv(
        channels,
        (3, 3),
        stride,
        padding=1,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


def conv1x1(channels: int, name: str | None, dtype: DTypeLike) -> layers.Conv:
    """Pointwise convolution."""
    return layers.Conv(channels, (1, 1), dtype=dtype, conv_general_dilated=pointwise, name=name)


class ResnetBlock(nn.Module):
    """diffusers' ResnetBlock2D with the default (additive) time conditioning.

    `temb` is the activated time embedding, or None where the block has no time input (autoencoder).
    """

    channels: int
    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        temb: Float[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch height width out"]:
        """`x` (through `conv_shortcut` if the width changes) plus the residual branch."""
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm1")(x))
        h = conv3x3(self.channels, "conv1", self.dtype)(h)
        if temb is not None:
            shift = layers.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(temb)
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm2")(h))
        h = conv3x3(self.channels, "conv2", self.dtype)(h)
        if x.shape[-1] != self.channels:
            x = conv1x1(self.channels, "conv_shortcut", self.dtype)(x)
        return x + h


class Downsample(nn.Module):
    """Strided 3x3 convolution that halves the image.

    The UNet pads by 1 on every side; the autoencoder by 1 at the bottom and right only.
    """

    channels: int
    symmetric: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch half_height half_width channel"]:
        """Halve; an odd side is rounded up (symmetric) or down."""
        padding = ((1, 1), (1, 1)) if self.symmetric else ((0, 1), (0, 1))
        conv = layers.Conv(self.channels, (3, 3), 2, padding=padding, dtype=self.dtype, name="conv")
        return conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution.

    `size` crops the doubled image to (height, width), for images of odd size that were halved
    rounding up; that is what nearest-neighbour resizing to 2n-1 gives.
    """

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channel"], size: tuple[int, int] | None = None
    ) -> Float[Array, "batch new_height new_width channel"]:
        """Double, crop to `size` if given, convolve."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(
            x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
        ).reshape(batch, 2 * height, 2 * width, channels)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return conv3x3(self.channels, "conv", self.dtype)(x)
