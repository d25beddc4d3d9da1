"""The denoiser of Stable Diffusion 1.x and 2.x: diffusers' UNet2DConditionModel in NHWC."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from emcid_jax.models.image.attention import Transformer2D
from emcid_jax.models.image.blocks import Downsample, GroupNorm, ResnetBlock, Upsample, conv3x3
from emcid_jax.models.weights import diffusers_config
from emcid_jax.models.weights.diffusers_config import (
    Channels,
    Depth,
    Fraction,
    Heads,
    PerBlock,
    Pixels,
    Width,
)
from emcid_jax.runtime.errors import UserError

NAME = "UNet2DConditionModel"

# Keys that choose something these modules do not compute, with the value that leaves it out.
_REQUIRED: Mapping[str, Any] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}

# Keys that change nothing at inference, or only together with a refused one.
_IGNORED = (
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "dropout",
    "mid_block_only_cross_attention",
    "projection_class_embeddings_input_dim",
    "upcast_attention",
)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet, in the words of diffusers' `config.json`; tuples hold one entry per block.

    The blocks count from the input downwards; the up blocks use the same entries in reverse.
    """

    sample_size: Pixels | tuple[Pixels, Pixels] = 64
    """Height and width of the latents the model was trained on; the modules take any size."""
    in_channels: Channels = 4
    out_channels: Channels = 4
    block_out_channels: Annotated[tuple[Width, ...], PerBlock] = (320, 640, 1280, 1280)
    layers_per_block: tuple[Depth, ...] = (2, 2, 2, 2)
    """Resnets of each down block; an up block has one more."""
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    """In the order they run, from the lowest resolution upwards."""
    attention_head_dim: tuple[Heads, ...] = (8, 8, 8, 8)
    """NUMBER of heads, whatever the name says (huggingface/diffusers issue 2011)."""
    cross_attention_dim: tuple[Width, ...] = (768, 768, 768, 768)
    transformer_layers_per_block: tuple[Depth, ...] = (1, 1, 1, 1)
    only_cross_attention: tuple[bool, ...] = (False, False, False, False)
    """The first attention of a transformer block reads the text too, not the pixels."""
    use_linear_projection: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Fraction = 0.0
    norm_num_groups: Width = 32
    norm_eps: Fraction = 1e-5

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: object = NAME) -> UNetConfig:
        """Reads the content of diffusers' `unet/config.json`; absent keys have diffusers' defaults.

        Args:
            config: that content.
            source: the file, for messages.

        Raises:
            UserError: the config asks for something that is not supported, or contradicts itself.
        """
        fields = tuple(field.name for field in dataclasses.fields(cls))
        diffusers_config.refuse_unsupported(source, config, (*fields, *_IGNORED), _REQUIRED)
        values = diffusers_config.given(config, fields)
        channels = values.get("block_out_channels", cls.block_out_channels)
        single = {
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 1280,
            "transformer_layers_per_block": 1,
            "only_cross_attention": False,
        }
        blocks = len(channels) if isinstance(channels, list | tuple) else 1
        for key, default in single.items():
            value = values.get(key, default)
            values[key] = diffusers_config.per_block(source, key, value, blocks)
        return diffusers_config.parse(cls, values, source)

    def to_dict(self) -> dict[str, Any]:
        """The content of diffusers' `unet/config.json`, which `from_dict` reads back."""
        values: dict[str, Any] = {"_class_name": NAME}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                uniform = len(set(value)) == 1 and not field.name.endswith(("channels", "types"))
                value = value[0] if uniform else list(value)
            values[field.name] = value
        return values

    def check(self, source: object) -> None:
        """Raises UserError, naming `source` and field, if the fields do not fit together."""
        blocks = len(self.block_out_channels)
        for field, prefix in (("down_block_types", "Down"), ("up_block_types", "Up")):
            value = getattr(self, field)
            diffusers_config.per_block(source, field, value, blocks)
            allowed = (f"CrossAttn{prefix}Block2D", f"{prefix}Block2D")
            diffusers_config.require_types(source, field, value, allowed)
        diffusers_config.require_groups(source, self.block_out_channels, self.norm_num_groups)
        for channels, heads in zip(self.block_out_channels, self.attention_head_dim, strict=True):
            if channels % heads:
                raise UserError(
                    f"{source}: attention_head_dim has {heads} heads, which do not divide "
                    f"block_out_channels {channels}"
                )
        if len(set(self.cross_attention_dim)) > 1:
            raise UserError(
                f"{source}: cross_attention_dim={self.cross_attention_dim} differs between "
                "blocks, but all of them read the same text states; use one value"
            )
        if self.block_out_channels[0] < 4:
            raise UserError(
                f"{source}: block_out_channels[0] is {self.block_out_channels[0]}; the embedding "
                "of the timestep needs at least 4"
            )
        pairs = zip(self.layers_per_block, self.transformer_layers_per_block, strict=True)
        diffusers_config.require_few_layers(
            source,
            "layers_per_block and transformer_layers_per_block",
            sum(resnets * transformers for resnets, transformers in pairs),
        )


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


class TimeEmbedding(nn.Module):
    """Two linear layers with a SiLU between them."""

    dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch frequency"]) -> Float[Array, "batch dim"]:
        """Embed `timestep_embedding`; not activated."""
        x = nn.silu(nn.Dense(self.dim, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.dim, dtype=self.dtype, name="linear_2")(x)


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
    ) -> Float[Array, "batch height width out_channel"]:
        """Prediction in the layout of `latents`, in `dtype`; timesteps may be fractional."""
        config, dtype = self.config, self.dtype
        channels = config.block_out_channels
        temb = timestep_embedding(
            timesteps, channels[0], config.flip_sin_to_cos, config.freq_shift
        ).astype(dtype)
        # Every resnet reads the activated embedding, so it is activated once.
        temb = nn.silu(TimeEmbedding(4 * channels[0], dtype, name="time_embedding")(temb))
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
