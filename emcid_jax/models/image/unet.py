"""The denoiser of Stable Diffusion 1.x, 2.x and XL: diffusers' UNet2DConditionModel in NHWC."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from emcid_jax.models import layers
from emcid_jax.models.image.attention import Transformer2D
from emcid_jax.models.image.blocks import Downsample, GroupNorm, ResnetBlock, Upsample, conv3x3
from emcid_jax.models.image.unet_config import UNetConfig

__all__ = ["UNet2DCondition", "UNetConfig"]


def timestep_embedding(
    timesteps: Int[Array, " batch"] | Float[Array, " batch"],
    dim: int,
    flip_sin_to_cos: bool,
    freq_shift: int | float,
) -> Float[Array, "batch dim"]:
    """Sines and cosines of the timestep at frequencies 10000^(-i / (dim/2 - freq_shift)), float32.

    Cosines come first if `flip_sin_to_cos`.
    """
    half = dim // 2
    exponent = -math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    embedding = jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def text_time_embedding(
    config: UNetConfig,
    pooled: Float[Array, "batch pooled"] | None,
    time_ids: Float[Array, "batch size"] | None,
) -> Float[Array, "batch pooled_and_sizes"] | None:
    """The pooled text beside the embeddings of all sizes; None for a UNet that takes neither.

    Raises:
        ValueError: see `UNet2DCondition`.
    """
    if config.addition_embed_type is None:
        if pooled is not None or time_ids is not None:
            raise ValueError("the UNet has no addition_embed_type: leave out pooled and time_ids")
        return None
    if pooled is None or time_ids is None or config.addition_time_embed_dim is None:
        raise ValueError("a UNet with addition_embed_type text_time needs pooled and time_ids")
    sizes = config.size_count(pooled.shape[-1])
    if time_ids.shape[-1] != sizes:
        raise ValueError(f"time_ids has {time_ids.shape[-1]} entries; the UNet takes {sizes}")
    width = config.addition_time_embed_dim
    embedded = timestep_embedding(
        time_ids.reshape(-1), width, config.flip_sin_to_cos, config.freq_shift
    ).reshape(time_ids.shape[0], -1)
    return jnp.concatenate([pooled.astype(jnp.float32), embedded], axis=-1)


class TimeEmbedding(nn.Module):
    """Two linear layers with a SiLU between them."""

    dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch frequency"]) -> Float[Array, "batch dim"]:
        """Embed `timestep_embedding`; not activated."""
        x = nn.silu(layers.Dense(self.dim, dtype=self.dtype, name="linear_1")(x))
        return layers.Dense(self.dim, dtype=self.dtype, name="linear_2")(x)


class _Level(nn.Module):
    """What a block at one resolution is made of: its config and its index from the input down."""

    config: UNetConfig
    level: int
    dtype: DTypeLike = jnp.float32

    def resnet(self, i: int) -> ResnetBlock:
        config = self.config
        channels = config.block_out_channels[self.level]
        return ResnetBlock(
            channels, config.norm_num_groups, config.norm_eps, self.dtype, name=f"resnets.{i}"
        )

    def transformer(self, i: int, only_cross_attention: bool) -> Transformer2D:
        config = self.config
        return Transformer2D(
            heads=config.attention_head_dim[self.level],
            layers=config.transformer_layers_per_block[self.level],
            groups=config.norm_num_groups,
            linear_projection=config.use_linear_projection,
            only_cross_attention=only_cross_attention,
            dtype=self.dtype,
            name=f"attentions.{i}",
        )


class DownBlock(_Level):
    """(CrossAttn)DownBlock2D: returns the output and the states the up path will read."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        temb: Float[Array, "batch time"],
        text: Float[Array, "batch token dim"],
    ) -> tuple[Array, list[Array]]:
        """Output and skips; the last skip is the output."""
        config, level = self.config, self.level
        skips: list[Array] = []
        for i in range(config.layers_per_block[level]):
            x = self.resnet(i)(x, temb)
            if config.down_block_types[level].startswith("CrossAttn"):
                x = self.transformer(i, config.only_cross_attention[level])(x, text)
            skips.append(x)
        if level < len(config.block_out_channels) - 1:
            channels = config.block_out_channels[level]
            x = Downsample(channels, symmetric=True, dtype=self.dtype, name="downsamplers.0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Level):
    """UNetMidBlock2DCrossAttn: resnet, transformer, resnet."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        temb: Float[Array, "batch time"],
        text: Float[Array, "batch token dim"],
    ) -> Float[Array, "batch height width channel"]:
        """Same shape as `x`."""
        x = self.resnet(0)(x, temb)
        x = self.transformer(0, only_cross_attention=False)(x, text)
        return self.resnet(1)(x, temb)


class UpBlock(_Level):
    """(CrossAttn)UpBlock2D; `skips` are popped from the end, one per resnet."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        skips: list[Array],
        temb: Float[Array, "batch time"],
        text: Float[Array, "batch token dim"],
    ) -> Float[Array, "batch new_height new_width out"]:
        """Output, at the resolution of the next skip."""
        config, level = self.config, self.level
        block_type = config.up_block_types[len(config.block_out_channels) - 1 - level]
        for i in range(config.layers_per_block[level] + 1):
            x = self.resnet(i)(jnp.concatenate([x, skips.pop()], axis=-1), temb)
            if block_type.startswith("CrossAttn"):
                x = self.transformer(i, config.only_cross_attention[level])(x, text)
        if level > 0:
            _, height, width, _ = skips[-1].shape
            channels = config.block_out_channels[level]
            x = Upsample(channels, self.dtype, name="upsamplers.0")(x, (height, width))
        return x


class UNet2DCondition(nn.Module):
    """Predicts the noise (or the velocity, as the scheduler says) in a batch of latents.

    Attributes:
        config: the shape.
        dtype: type of the computation; parameters stay float32, as do group norms and softmax.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "batch height width channel"],
        timesteps: Int[Array, " batch"] | Float[Array, " batch"],
        text: Float[Array, "batch token dim"],
        pooled: Float[Array, "batch pooled"] | None = None,
        time_ids: Float[Array, "batch size"] | None = None,
    ) -> Float[Array, "batch height width out_channel"]:
        """Prediction in the layout of `latents`, in `dtype`.

        Args:
            latents: noisy, at the scale that the sampler asks for.
            timesteps: may be fractional.
            text: states of the text encoders.
            pooled: SDXL's pooled text; a UNet with `text_time` needs it and `time_ids`.
            time_ids: its sizes in pixels (original height and width, top and left of the crop,
                height and width to draw); the refiner has a score in place of the last two.

        Raises:
            ValueError: `pooled` and `time_ids` are missing, too much, or of another width.
        """
        config, dtype = self.config, self.dtype
        channels = config.block_out_channels
        temb = timestep_embedding(
            timesteps, channels[0], config.flip_sin_to_cos, config.freq_shift
        ).astype(dtype)
        temb = TimeEmbedding(4 * channels[0], dtype, name="time_embedding")(temb)
        added = text_time_embedding(config, pooled, time_ids)
        if added is not None:
            embed = TimeEmbedding(4 * channels[0], dtype, name="add_embedding")
            temb = temb + embed(added.astype(dtype))
        # Every resnet reads the activated embedding, so it is activated once.
        temb = nn.silu(temb)
        latents, text = latents.astype(dtype), text.astype(dtype)

        x = conv3x3(channels[0], "conv_in", dtype)(latents)
        skips = [x]
        for level in range(len(channels)):
            block = DownBlock(config, level, dtype, name=f"down_blocks.{level}")
            x, states = block(x, temb, text)
            skips.extend(states)
        x = MidBlock(config, len(channels) - 1, dtype, name="mid_block")(x, temb, text)
        for i, level in enumerate(reversed(range(len(channels)))):
            x = UpBlock(config, level, dtype, name=f"up_blocks.{i}")(x, skips, temb, text)
        x = nn.silu(
            GroupNorm(config.norm_num_groups, config.norm_eps, dtype, name="conv_norm_out")(x)
        )
        return conv3x3(config.out_channels, "conv_out", dtype)(x)
