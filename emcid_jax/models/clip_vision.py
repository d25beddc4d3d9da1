"""The CLIP image tower with its projection: image embeddings for CLIP scores and features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.models.transformer import BlockConfig, ClipBlock, check_patches, layer_norm


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(BlockConfig):
    """`config.json` of a CLIP image tower; the defaults are those of transformers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    """Height and width of the input in pixels."""
    patch_size: int = 32
    """Height and width of a patch in pixels."""
    num_channels: int = 3
    """Channels of the input."""
    projection_dim: int = 512
    """Size of the space shared with the text tower."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipVisionConfig:
        """From the parsed JSON file of an image tower or of a whole CLIP model.

        Keys that are no field are ignored. Raises `UserError` naming the field if the model
        cannot be built from the values.
        """
        if "vision_config" in values:
            # The outer projection_dim is the one a whole CLIP model is built with.
            outer = {name: values[name] for name in ("projection_dim",) if name in values}
            values = {**values["vision_config"], **outer}
        return super().from_dict(values)

    def check(self) -> None:
        """Raise `UserError` for a field this package cannot serve."""
        super().check()
        check_patches(self.image_size, self.patch_size, type(self).__name__)


def disk_name(stored: str) -> str | None:
    """Name expected here of a tensor on disk, None for the rest of a whole CLIP model."""
    unused = ("text_model.", "text_projection.", "logit_scale")
    return None if stored.startswith(unused) else stored


class VisionOutput(NamedTuple):
    """What the image tower computes for a batch of images."""

    image_embeds: Float[Array, "image projection"]
    """Projected class token, not normalised."""
    last_hidden: Float[Array, "image token dim"]
    """Output of the last block, class token first, before the final norm."""


class VisionEmbeddings(nn.Module):
    """Patches, a class token in front, plus learned positions."""

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> Float[Array, "image token dim"]:
        """Input of the first norm."""
        config = self.config
        patch = (config.patch_size, config.patch_size)
        patches = nn.Conv(
            config.hidden_size,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        count, rows, columns, dim = patches.shape
        patches = patches.reshape(count, rows * columns, dim)
        first = self.param("class_embedding", nn.initializers.normal(dim**-0.5), (dim,))
        first = jnp.broadcast_to(first.astype(self.dtype), (count, 1, dim))
        places = nn.Embed(
            rows * columns + 1,
            dim,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="position_embedding",
        )(jnp.arange(rows * columns + 1))
        return jnp.concatenate([first, patches], axis=1) + places


class VisionEncoder(nn.Module):
    """The blocks (`encoder` on disk)."""

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "image token dim"]) -> Float[Array, "image token dim"]:
        """Output of the last block."""
        for index in range(self.config.num_hidden_layers):
            hidden = ClipBlock(self.config, self.dtype, name=f"layers.{index}")(hidden).hidden
        return hidden


class VisionTransformer(nn.Module):
    """Everything below the projection (`vision_model` on disk)."""

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> tuple[Float[Array, "image dim"], Float[Array, "image token dim"]]:
        """Normed class token and last hidden states."""
        config = self.config
        hidden = VisionEmbeddings(config, self.dtype, name="embeddings")(pixels)
        # Misspelt on disk, too.
        hidden = layer_norm(config.layer_norm_eps, self.dtype, "pre_layrnorm")(hidden)
        last = VisionEncoder(config, self.dtype, name="encoder")(hidden)
        pooled = layer_norm(config.layer_norm_eps, self.dtype, "post_layernorm")(last[:, 0])
        return pooled, last


class ClipVisionModelWithProjection(nn.Module):
    """CLIP image tower with projection."""

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[Array, "image height width channel"]) -> VisionOutput:
        """Embed images already normalised the way the checkpoint was trained.

        Raises:
            ValueError: the images do not have the config's size.
        """
        config = self.config
        wanted = (config.image_size, config.image_size, config.num_channels)
        if pixels.shape[1:] != wanted:
            raise ValueError(f"images are {pixels.shape[1:]}; the model takes {wanted}")
        pooled, last = VisionTransformer(config, self.dtype, name="vision_model")(pixels)
        project = nn.Dense(
            config.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        return VisionOutput(project(pooled), last)
