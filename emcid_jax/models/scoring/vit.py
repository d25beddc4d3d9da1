"""The ViT image classifier that scores what a model draws (google/vit-base-patch16-224)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.scoring.patches import ImageTowerConfig, patch_tokens
from emcid_jax.models.text.transformer import ACTIVATIONS, Activation, attention, layer_norm
from emcid_jax.models.weights.diffusers_config import (
    Channels,
    Depth,
    Fraction,
    Heads,
    Pixels,
    Rows,
    Width,
)
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import convert


@dataclasses.dataclass(frozen=True)
class ViTConfig(ImageTowerConfig):
    """`config.json` of a ViT classifier; the defaults are those of transformers."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    hidden_act: Activation = "gelu"
    layer_norm_eps: Fraction = 1e-12
    image_size: Pixels = 224
    patch_size: Pixels = 16
    num_channels: Channels = 3
    qkv_bias: bool = True
    """Whether query, key and value have biases."""
    num_labels: Rows = 2
    """Classes; counted from `id2label` when the file has that instead."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "config.json") -> ViTConfig:
        """From the parsed JSON file `source`; keys that are no field are ignored.

        Raises `UserError` naming file and field if the model cannot be built from the values.
        """
        labels = convert(values.get("id2label"), Mapping[str, Any] | None, f"{source}: id2label")
        counted = {"num_labels": len(labels)} if labels else {}
        config = super().from_dict({**counted, **values}, source)
        if labels and len(labels) != config.num_labels:
            raise UserError(
                f"{source}: num_labels is {config.num_labels}, but id2label names {len(labels)}; "
                "make them equal"
            )
        return config


def disk_name(stored: str) -> str | None:
    """Name expected here of a tensor on disk, None for one a classifier does not use."""
    unused = ("vit.pooler.", "vit.embeddings.mask_token")
    return None if stored.startswith(unused) else stored


class ViTBlock(nn.Module):
    """Pre-norm transformer block under ViT's names."""

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "image token dim"]) -> Float[Array, "image token dim"]:
        """One block."""
        config = self.config

        def dense(size: int, name: str, bias: bool = True) -> layers.Dense:
            return layers.Dense(size, use_bias=bias, dtype=self.dtype, name=name)

        def project(name: str) -> layers.Dense:
            return dense(config.hidden_size, f"attention.attention.{name}", config.qkv_bias)

        normed = layer_norm(config.layer_norm_eps, self.dtype, "layernorm_before")(hidden)
        mixed = attention(
            project("query")(normed),
            project("key")(normed),
            project("value")(normed),
            config.num_attention_heads,
        )
        hidden = hidden + dense(config.hidden_size, "attention.output.dense")(mixed)
        normed = layer_norm(config.layer_norm_eps, self.dtype, "layernorm_after")(hidden)
        inner = dense(config.intermediate_size, "intermediate.dense")(normed)
        inner = ACTIVATIONS[config.hidden_act](inner)
        return hidden + dense(config.hidden_size, "output.dense")(inner)


class ViTEmbeddings(layers.Layer):
    """Patches, a class token in front, plus learned positions."""

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> Float[Array, "image token dim"]:
        """Input of block 0."""
        dim, init = self.config.hidden_size, nn.initializers.normal(0.02)
        tokens = patch_tokens(
            pixels,
            self.param("cls_token", init, (1, 1, dim))[0, 0],
            self.config.patch_size,
            bias=True,
            name="patch_embeddings.projection",
            dtype=self.dtype,
        )
        places = self.param("position_embeddings", init, (1, *tokens.shape[1:]))
        return tokens + places.astype(self.dtype)


class ViT(nn.Module):
    """Embeddings, blocks and final norm (`vit` on disk)."""

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> Float[Array, "image token dim"]:
        """Normed final states, class token first."""
        config = self.config
        hidden = ViTEmbeddings(config, self.dtype, name="embeddings")(pixels)
        for index in range(config.num_hidden_layers):
            hidden = ViTBlock(config, self.dtype, name=f"encoder.layer.{index}")(hidden)
        return layer_norm(config.layer_norm_eps, self.dtype, "layernorm")(hidden)


class ViTForImageClassification(nn.Module):
    """ViT with a linear classifier on the class token."""

    config: ViTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "image height width channel"]
    ) -> Float[Array, "image label"]:
        """Logits of images whose values are in [-1, 1].

        Raises:
            ValueError: the images do not have the config's size.
        """
        config = self.config
        config.check_images(pixels)
        states = ViT(config, self.dtype, name="vit")(pixels)
        return layers.Dense(config.num_labels, dtype=self.dtype, name="classifier")(states[:, 0])
