"""What the transformers here share: attention over heads, activations, the CLIP block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, DTypeLike, Float

from emcid_jax.models import layers
from emcid_jax.models.weights import diffusers_config
from emcid_jax.models.weights.diffusers_config import Depth, Fraction, Heads, Width
from emcid_jax.runtime.errors import UserError

Config = TypeVar("Config", bound="BlockConfig")
Activation = Literal["gelu", "quick_gelu"]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """The fields of a `config.json` that size a transformer.

    Each model adds its own fields and gives every field a default.
    """

    hidden_size: Width
    """Width of the residual stream."""
    intermediate_size: Width
    """Width between the two dense layers of a block."""
    num_hidden_layers: Depth
    """Number of blocks."""
    num_attention_heads: Heads
    """Heads per block."""
    hidden_act: Activation
    """`gelu` or `quick_gelu`."""
    layer_norm_eps: Fraction
    """Added to the variance in every layer norm."""

    @classmethod
    def from_dict(
        cls: type[Config], values: Mapping[str, Any], source: object = "config.json"
    ) -> Config:
        """From the parsed JSON file; keys that are no field are ignored.

        Raises `UserError` naming `source` (the file) and the field if the model cannot be built
        from the values.
        """
        return diffusers_config.parse(cls, values, source)

    def check(self, source: object) -> None:
        """Raise `UserError`, naming `source` and field, if the fields do not fit together."""
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{source}: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )


class BlockOutput(NamedTuple):
    """What one block computes for every token."""

    hidden: Float[Array, "batch token dim"]
    """Residual stream after the block."""
    key: Float[Array, "batch token inner"]
    """Input of `mlp.fc2`."""
    value: Float[Array, "batch token dim"]
    """Output of `mlp.fc2`, before it is added to the residual stream."""


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact (erf) GELU."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"gelu": gelu, "quick_gelu": quick_gelu}


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> layers.LayerNorm:
    """Layer norm as PyTorch computes it: two-pass variance, statistics in float32."""
    return layers.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def attention(
    query: Float[Array, "batch token dim"],
    key: Float[Array, "batch token dim"],
    value: Float[Array, "batch token dim"],
    heads: int,
    *,
    causal: bool = False,
    mask: Bool[Array, "batch token"] | None = None,
) -> Float[Array, "batch token dim"]:
    """Scaled dot-product attention over `heads` heads, softmax in float32.

    `mask` is True at tokens that may be attended to; it combines with `causal`.
    """
    batch, tokens, dim = query.shape
    split = (batch, tokens, heads, dim // heads)
    out = jax.nn.dot_product_attention(
        query.reshape(split),
        key.reshape(split),
        value.reshape(split),
        mask=None if mask is None else mask[:, None, None, :],
        is_causal=causal,
        implementation="xla",
    )
    return out.reshape(batch, tokens, dim)


class ClipAttention(nn.Module):
    """Self-attention with CLIP's parameter names."""

    config: BlockConfig
    dtype: Any = jnp.float32
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch token dim"],
        mask: Bool[Array, "batch token"] | None = None,
    ) -> Float[Array, "batch token dim"]:
        """Mix tokens; `mask` as in `attention`."""
        dim, depth = self.config.hidden_size, self.config.num_hidden_layers
        # CLIP's own initialisation: residual branches shrink with depth.
        narrow = nn.initializers.normal((2 * depth * dim) ** -0.5)

        def project(name: str, init: nn.initializers.Initializer) -> layers.Dense:
            return layers.Dense(dim, dtype=self.dtype, kernel_init=init, name=name)

        mixed = attention(
            project("q_proj", narrow)(hidden),
            project("k_proj", narrow)(hidden),
            project("v_proj", narrow)(hidden),
            self.config.num_attention_heads,
            causal=self.causal,
            mask=mask,
        )
        return project("out_proj", nn.initializers.normal(dim**-0.5))(mixed)


class ClipMlp(nn.Module):
    """Two dense layers; returns `(value, key)`, output and input of the second."""

    config: BlockConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch token dim"]
    ) -> tuple[Float[Array, "batch token dim"], Float[Array, "batch token inner"]]:
        """Value and key of every token."""
        config = self.config
        dim, depth = config.hidden_size, config.num_hidden_layers
        inner = layers.Dense(
            config.intermediate_size,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal((2 * dim) ** -0.5),
            name="fc1",
        )(hidden)
        key = ACTIVATIONS[config.hidden_act](inner)
        value = layers.Dense(
            dim,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal((2 * depth * dim) ** -0.5),
            name="fc2",
        )(key)
        return value, key


class ClipBlock(nn.Module):
    """Pre-norm transformer block of both CLIP towers."""

    config: BlockConfig
    dtype: Any = jnp.float32
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch token dim"],
        mask: Bool[Array, "batch token"] | None = None,
    ) -> BlockOutput:
        """One block; `mask` as in `attention`."""
        epsilon = self.config.layer_norm_eps
        normed = layer_norm(epsilon, self.dtype, "layer_norm1")(hidden)
        hidden = hidden + ClipAttention(self.config, self.dtype, self.causal, name="self_attn")(
            normed, mask
        )
        normed = layer_norm(epsilon, self.dtype, "layer_norm2")(hidden)
        value, key = ClipMlp(self.config, self.dtype, name="mlp")(normed)
        return BlockOutput(hidden + value, key, value)
