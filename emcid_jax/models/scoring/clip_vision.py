"""The CLIP image tower with its projection: image embeddings for CLIP scores and features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.scoring.patches import ImageTowerConfig, patch_tokens
from emcid_jax.models.text.transformer import Activation, ClipBlock, layer_norm
from emcid_jax.models.weights.diffusers_config import (
    Channels,
    Depth,
    Fraction,
    Heads,
    Pixels,
    Width,
)
from emcid_jax.runtime.typed_values import convert


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(ImageTowerConfig):
    """`config.json` of a CLIP image tower; the defaults are those of transformers."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Fraction = 1e-5
    image_size: Pixels = 224
    patch_size: Pixels = 32
    num_channels: Channels = 3
    projection_dim: Width = 512
    """Size of the space shared with the text tower."""

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: object = "config.json"
    ) -> ClipVisionConfig:
        """From the parsed JSON file `source` of an image tower or of a whole CLIP model.

        Keys that are no field are ignored. Raises `UserError` naming file and field if the model
        cannot be built from the values.
        """
        if "vision_config" in values:
            # The outer projection_dim is the one a whole CLIP model is built with.
            outer = {name: values[name] for name in ("projection_dim",) if name in values}
            name = f"{source}: vision_config"
            values = {**convert(values["vision_config"], Mapping[str, Any], name), **outer}
        return super().from_dict(values, source)


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


class VisionEmbeddings(layers.Layer):
    """Patches, a class token in front, plus learned positions."""

    config: ClipVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> Float[Array, "image token dim"]:
        """Input of the first norm."""
        dim, normal = self.config.hidden_size, nn.initializers.normal
        tokens = patch_tokens(
            pixels,
            self.param("class_embedding", normal(dim**-0.5), (dim,)),
            self.config.patch_size,
            bias=False,
            name="patch_embedding",
            dtype=self.dtype,
        )
        count = tokens.shape[1]
        places = layers.Embed(
            count,
            dim,
            dtype=self.dtype,
            embedding_init=normal(0.02),
            name="position_embedding",
        )
        return tokens + places(jnp.arange(count))


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
        config.check_images(pixels)
        pooled, last = VisionTransformer(config, self.dtype, name="vision_model")(pixels)
        project = layers.Dense(
            config.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        return VisionOutput(project(pooled), last)
