"""Attention of the UNet and the autoencoder, diffusers' names.

Text enters the UNet only here: the keys and values of `attn2` are linear in the text states.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.image.blocks import GroupNorm, LayerNorm, conv1x1
from emcid_jax.models.kernels.attention import attend


def _project_and_attend(
    x: Array, context: Array, heads: int, bias: bool, dtype: DTypeLike
) -> Array:
    """Multi-head attention whose projections belong to the module that calls this."""
    batch, _, dim = x.shape

    def project(name: str, states: Array) -> Array:
        states = layers.Dense(dim, use_bias=bias, dtype=dtype, name=name)(states)
        return states.reshape(batch, -1, heads, dim // heads)

    query = project("to_q", x) * (dim // heads) ** -0.5
    out = attend(query, project("to_k", context), project("to_v", context))
    return layers.Dense(dim, dtype=dtype, name="to_out.0")(out.reshape(x.shape).astype(dtype))


class Attention(nn.Module):
    """Multi-head attention from `x` to `context` (to itself if None), scaled by 1/sqrt(head size).

    Softmax in float32, whatever `dtype`.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch query dim"],
        context: Float[Array, "batch key context_dim"] | None = None,
    ) -> Float[Array, "batch query dim"]:
        """Attend; the context may have another width than `x`."""
        context = x if context is None else context
        return _project_and_attend(x, context, self.heads, False, self.dtype)


class SpatialAttention(nn.Module):
    """Single-head self-attention over the pixels with a residual (autoencoder's middle block).

    diffusers has no level between its norm and its projections, and the projections have biases.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """`x` plus what every pixel reads from all pixels."""
        normed = GroupNorm(self.groups, self.epsilon, self.dtype, name="group_norm")(x)
        tokens = normed.reshape(x.shape[0], -1, x.shape[-1])
        read = _project_and_attend(tokens, tokens, 1, True, self.dtype)
        return x + read.reshape(x.shape)


class FeedForward(nn.Module):
    """GEGLU: `W_2 (a * gelu(b))`, `(a, b) = W_1 x`, hidden size 4 * dim (Shazeer 2020)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"]) -> Float[Array, "batch token dim"]:
        """Apply to every token."""
        dim = x.shape[-1]
        hidden, gate = jnp.split(
            layers.Dense(8 * dim, dtype=self.dtype, name="net.0.proj")(x), 2, axis=-1
        )
        hidden = hidden * nn.gelu(gate, approximate=False)
        return layers.Dense(dim, dtype=self.dtype, name="net.2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention (or attention to the text), attention to the text, feed-forward; pre-norm."""

    heads: int
    only_cross_attention: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch pixel dim"], text: Float[Array, "batch token text_dim"]
    ) -> Float[Array, "batch pixel dim"]:
        """Pixels after reading each other and the text."""

        def norm(number: int, states: Array) -> Array:
            return LayerNorm(1e-5, self.dtype, name=f"norm{number}")(states)

        first = text if self.only_cross_attention else None
        x = x + Attention(self.heads, self.dtype, name="attn1")(norm(1, x), first)
        x = x + Attention(self.heads, self.dtype, name="attn2")(norm(2, x), text)
        return x + FeedForward(self.dtype, name="ff")(norm(3, x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of an image, with a residual (Transformer2DModel).

    `linear_projection` stores the projections into and out of the blocks as linear layers (SD 2.x)
    instead of pointwise convolutions (SD 1.x); the computation is the same.
    """

    heads: int
    layers: int
    groups: int
    linear_projection: bool
    only_cross_attention: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        text: Float[Array, "batch token text_dim"],
    ) -> Float[Array, "batch height width channel"]:
        """The image after all blocks, same shape."""
        channels = x.shape[-1]

        def project(name: str, states: Array) -> Array:
            if self.linear_projection:
                return layers.Dense(channels, dtype=self.dtype, name=name)(states)
            return conv1x1(channels, name, self.dtype)(states)

        h = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x)
        h = project("proj_in", h).reshape(x.shape[0], -1, channels)
        for i in range(self.layers):
            block = TransformerBlock(
                self.heads, self.only_cross_attention, self.dtype, name=f"transformer_blocks.{i}"
            )
            h = block(h, text)
        return x + project("proj_out", h.reshape(x.shape))
