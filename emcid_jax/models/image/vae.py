"""Stable Diffusion's image autoencoder: diffusers' AutoencoderKL in NHWC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from emcid_jax.models.image.attention import SpatialAttention
from emcid_jax.models.image.blocks import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
    conv1x1,
    conv3x3,
)
from emcid_jax.models.weights import diffusers_config
from emcid_jax.models.weights.diffusers_config import Channels, Depth, PerBlock, Pixels, Width
from emcid_jax.runtime.typed_values import Range

NAME = "AutoencoderKL"
EPSILON = 1e-6

_REQUIRED: Mapping[str, Any] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": (None, 0),
}


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """Shape of the autoencoder, in the words of diffusers' `config.json`."""

    in_channels: Channels = 3
    out_channels: Channels = 3
    latent_channels: Channels = 4
    block_out_channels: Annotated[tuple[Width, ...], PerBlock] = (64,)
    layers_per_block: Depth = 1
    """Resnets of an encoder block; a decoder block has one more."""
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    norm_num_groups: Width = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    sample_size: Pixels | tuple[Pixels, Pixels] = 32
    """Height and width of the images the model was trained on; the modules take any size."""
    scaling_factor: Annotated[float, Range(1e-6, 1e6)] = 0.18215
    """Diffusion runs on latents times this; `encode` and `decode` do NOT apply it."""

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: object = NAME) -> VaeConfig:
        """Reads the content of diffusers' `vae/config.json`; absent keys have diffusers' defaults.

        Args:
            config: that content.
            source: the file, for messages.

        Raises:
            UserError: the config asks for something that is not supported, or contradicts itself.
        """
        fields = tuple(field.name for field in dataclasses.fields(cls))
        diffusers_config.refuse_unsupported(source, config, (*fields, "force_upcast"), _REQUIRED)
        return diffusers_config.parse(cls, diffusers_config.given(config, fields), source)

    def to_dict(self) -> dict[str, Any]:
        """The content of diffusers' `vae/config.json`, which `from_dict` reads back."""
        values = dataclasses.asdict(self)
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {"_class_name": NAME, **lists}

    def check(self, source: object) -> None:
        """Raises UserError, naming `source` and field, if the fields do not fit together."""
        blocks = len(self.block_out_channels)
        types = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        for field, allowed in types.items():
            diffusers_config.per_block(source, field, getattr(self, field), blocks)
            diffusers_config.require_types(source, field, getattr(self, field), (allowed,))
        diffusers_config.require_few_layers(
            source, "block_out_channels and layers_per_block", blocks * self.layers_per_block
        )
        diffusers_config.require_groups(source, self.block_out_channels, self.norm_num_groups)


def rename_vae_key(name: str) -> str:
    """Name of a stored tensor in today's diffusers, from the one before diffusers 0.15.

    Attention layers were `query`, `key`, `value`, `proj_attn`; they are `to_q`, `to_k`, `to_v`,
    `to_out.0`. Other names stay.
    """
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    *parts, layer, leaf = name.split(".")
    if "attentions" in parts and layer in old:
        return ".".join([*parts, old[layer], leaf])
    return name


class _Blocks(nn.Module):
    """What the blocks are made of."""

    config: VaeConfig
    channels: int
    dtype: DTypeLike = jnp.float32

    def resnet(self, i: int) -> ResnetBlock:
        groups = self.config.norm_num_groups
        return ResnetBlock(self.channels, groups, EPSILON, self.dtype, name=f"resnets.{i}")


class EncoderBlock(_Blocks):
    """DownEncoderBlock2D."""

    downsample: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Array:
        """Half size unless it is the last block."""
        for i in range(self.config.layers_per_block):
            x = self.resnet(i)(x)
        if self.downsample:
            down = Downsample(self.channels, False, self.dtype, name="downsamplers.0")
            x = down(x)
        return x


class DecoderBlock(_Blocks):
    """UpDecoderBlock2D."""

    upsample: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Array:
        """Double size unless it is the last block."""
        for i in range(self.config.layers_per_block + 1):
            x = self.resnet(i)(x)
        if self.upsample:
            x = Upsample(self.channels, self.dtype, name="upsamplers.0")(x)
        return x


class MidBlock(_Blocks):
    """UNetMidBlock2D: resnet, self-attention, resnet."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Array:
        """Same shape as `x`."""
        x = self.resnet(0)(x)
        if self.config.mid_block_add_attention:
            groups = self.config.norm_num_groups
            x = SpatialAttention(groups, EPSILON, self.dtype, name="attentions.0")(x)
        return self.resnet(1)(x)


class Encoder(nn.Module):
    """Image to mean and log-variance of the latents, before `quant_conv`."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channel"]) -> Array:
        """Concatenated mean and log-variance."""
        config, dtype = self.config, self.dtype
        channels = config.block_out_channels
        x = conv3x3(channels[0], "conv_in", dtype)(images)
        for i, count in enumerate(channels):
            last = i == len(channels) - 1
            x = EncoderBlock(config, count, dtype, not last, name=f"down_blocks.{i}")(x)
        x = MidBlock(config, channels[-1], dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPSILON, dtype, name="conv_norm_out")(x))
        return conv3x3(2 * config.latent_channels, "conv_out", dtype)(x)


class Decoder(nn.Module):
    """Latents after `post_quant_conv` to image."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "batch height width channel"]) -> Array:
        """Image, not clipped."""
        config, dtype = self.config, self.dtype
        channels = config.block_out_channels[::-1]
        x = conv3x3(channels[0], "conv_in", dtype)(latents)
        x = MidBlock(config, channels[0], dtype, name="mid_block")(x)
        for i, count in enumerate(channels):
            last = i == len(channels) - 1
            x = DecoderBlock(config, count, dtype, not last, name=f"up_blocks.{i}")(x)
        x = nn.silu(GroupNorm(config.norm_num_groups, EPSILON, dtype, name="conv_norm_out")(x))
        return conv3x3(config.out_channels, "conv_out", dtype)(x)


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to a normal distribution over latents, and back.

    Latents are unscaled: multiply by `config.scaling_factor` before diffusion, divide before
    `decode`.
    """

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Names the parts as diffusers does."""
        config, dtype = self.config, self.dtype
        self.encoder = Encoder(config, dtype)
        self.decoder = Decoder(config, dtype)
        if config.use_quant_conv:
            self.quant_conv = conv1x1(2 * config.latent_channels, None, dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = conv1x1(config.latent_channels, None, dtype)

    def encode(
        self, images: Float[Array, "batch height width channel"]
    ) -> tuple[
        Float[Array, "batch latent_height latent_width latent"],
        Float[Array, "batch latent_height latent_width latent"],
    ]:
        """Mean and standard deviation of the latents, float32.

        The log-variance is clipped to [-30, 20], as diffusers does.
        """
        moments = self.encoder(images.astype(self.dtype))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def decode(
        self, latents: Float[Array, "batch latent_height latent_width latent"]
    ) -> Float[Array, "batch height width channel"]:
        """Images in about [-1, 1] (not clipped), float32."""
        latents = latents.astype(self.dtype)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Reconstruction from the mean; touches every parameter, so it serves `init`."""
        return self.decode(self.encode(images)[0])
