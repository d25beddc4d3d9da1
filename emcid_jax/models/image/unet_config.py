"""The shape of a UNet: diffusers' `unet/config.json`, and what of it is supported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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
    "dropout",
    "mid_block_only_cross_attention",
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
    addition_embed_type: Literal["text_time"] | None = None
    """What is added to the embedding of the timestep: nothing, or SDXL's pooled text and sizes."""
    addition_time_embed_dim: Width | None = None
    """Width of the embedding of each size."""
    projection_class_embeddings_input_dim: Width | None = None
    """Width of the pooled text and of all sizes together."""

    def size_count(self, pooled: int) -> int:
        """How many sizes a UNet with `text_time` takes beside a pooled text of width `pooled`.

        SDXL takes six (`time_ids`), its refiner five.

        Raises:
            ValueError: that pooled text leaves no whole number of sizes, or the UNet takes none.
        """
        total, each = self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
        if self.addition_embed_type is None or total is None or each is None:
            raise ValueError("addition_embed_type is None: the UNet takes no sizes")
        if total <= pooled or (total - pooled) % each:
            raise ValueError(
                f"projection_class_embeddings_input_dim={total} is not {pooled}, the width of the "
                f"pooled text, and a multiple of addition_time_embed_dim={each}"
            )
        return (total - pooled) // each

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
        for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if self.addition_embed_type is not None and getattr(self, field) is None:
                raise UserError(
                    f"{source}: addition_embed_type is {self.addition_embed_type!r}, but {field} "
                    "is missing; take the file of the model's own unet folder"
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
