"""The CLIP text encoders of Stable Diffusion: the models that get edited.

One call returns keys, values and block outputs of every block, can add an offset `delta` to the
output of a block, and can resume from a block's input. Under `jit` what the caller does not use
is not computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from emcid_jax.models import layers
from emcid_jax.models.text.transformer import Activation, BlockConfig, ClipBlock, layer_norm
from emcid_jax.models.weights.diffusers_config import (
    Depth,
    Fraction,
    Heads,
    Positions,
    Rows,
    TokenId,
    Width,
)

# Configs older than transformers' fix of 2023 say 2 whatever the tokenizer's end token is; there
# the end is the highest id of the prompt. Stable Diffusion 1.x and 2.x are such configs.
LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(BlockConfig):
    """`text_encoder/config.json`; the defaults are those of transformers."""

    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 8
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Fraction = 1e-5
    vocab_size: Rows = 49408
    """Rows of the token table."""
    max_position_embeddings: Positions = 77
    """Longest prompt in tokens."""
    eos_token_id: TokenId = 49407
    """End-of-text token whose state is pooled; 2 stands for the highest id of the prompt."""
    projection_dim: Width = dataclasses.field(default=512, compare=False)
    """Width of the projected pooled state. Of a model without projection it says nothing, so
    configs that differ in it alone are equal."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: object = "config.json") -> ClipTextConfig:
        """See `BlockConfig.from_dict`; a null `projection_dim` is one that is not there."""
        unsaid = {"projection_dim"} if values.get("projection_dim") is None else set()
        given = {key: value for key, value in values.items() if key not in unsaid}
        return super().from_dict(given, source)


MLP = "text_model.encoder.layers.{}.mlp.{}"
"""Name on disk of a weight of block {}'s MLP."""


def disk_name(stored: str) -> str:
    """Name expected here of a tensor in any published layout: a `rename` for `read_params`.

    transformers >= 5.6 leaves `text_model.` out when it saves a model that it did not read. The
    projection lies outside that prefix.
    """
    inside = not stored.startswith(("text_model.", "text_projection."))
    return f"text_model.{stored}" if inside else stored


class TextOutput(NamedTuple):
    """What the text encoder computes for a batch of prompts.

    The tuples run over blocks; entries before `start` are None.
    """

    last_hidden_state: Float[Array, "prompt token dim"]
    """Output of the final layer norm: what the UNet attends to."""
    pooled: Float[Array, "prompt dim"]
    """`last_hidden_state` at the first end-of-text token."""
    hidden: tuple[Float[Array, "prompt token dim"] | None, ...]
    """Residual stream after each block, `delta` included."""
    keys: tuple[Float[Array, "prompt token inner"] | None, ...]
    """Input of each `mlp.fc2`."""
    values: tuple[Float[Array, "prompt token dim"] | None, ...]
    """Output of each `mlp.fc2`."""
    projected: Float[Array, "prompt projection"] | None = None
    """`pooled` times the text projection (transformers' `text_embeds`); None in a model without."""


class Edit(NamedTuple):
    """An offset to the residual stream."""

    block: int
    """Block whose output changes."""
    offset: Float[Array, "prompt token dim"]
    """Added to that output; zero but at one token."""


class TextEmbeddings(nn.Module):
    """Token plus position embeddings."""

    config: ClipTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: Int[Array, "prompt token"]) -> Float[Array, "prompt token dim"]:
        """Input of block 0. Raises `ValueError` for more tokens than the model has positions."""
        config = self.config

        def table(size: int, name: str) -> layers.Embed:
            init = nn.initializers.normal(0.02)
            return layers.Embed(
                size, config.hidden_size, dtype=self.dtype, embedding_init=init, name=name
            )

        tokens = input_ids.shape[1]
        if tokens > config.max_position_embeddings:
            raise ValueError(
                f"input_ids has {tokens} tokens; the model takes {config.max_position_embeddings}"
            )
        words = table(config.vocab_size, "token_embedding")(input_ids)
        places = table(config.max_position_embeddings, "position_embedding")(jnp.arange(tokens))
        return words + places


class TextEncoder(nn.Module):
    """The blocks from `start` on; returns (hidden, keys, values), each over blocks."""

    config: ClipTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "prompt token dim"],
        mask: Bool[Array, "prompt token"] | None,
        edit: Edit | None,
        start: int,
    ) -> tuple[tuple[Array | None, ...], tuple[Array | None, ...], tuple[Array | None, ...]]:
        """Run blocks `start` and above, adding `edit` where it belongs."""
        outputs: list[tuple[Array | None, ...]] = [(None, None, None)] * start
        for index in range(start, self.config.num_hidden_layers):
            layer = ClipBlock(self.config, self.dtype, causal=True, name=f"layers.{index}")
            hidden, key, value = layer(hidden, mask)
            if edit is not None and index == edit.block:
                hidden = hidden + edit.offset
            outputs.append((hidden, key, value))
        states, keys, values = zip(*outputs, strict=True)
        return states, keys, values


class TextTransformer(nn.Module):
    """Embeddings, blocks and final norm (`text_model` on disk)."""

    config: ClipTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "prompt token"],
        mask: Bool[Array, "prompt token"] | None,
        edit: Edit | None,
        hidden: Float[Array, "prompt token dim"] | None,
        start: int,
    ) -> TextOutput:
        """See `ClipTextModel`, which checks the arguments."""
        config = self.config
        if hidden is None:
            hidden = TextEmbeddings(config, self.dtype, name="embeddings")(input_ids)
        states, keys, values = TextEncoder(config, self.dtype, name="encoder")(
            hidden.astype(self.dtype), mask, edit, start
        )
        last = hidden if start == config.num_hidden_layers else states[-1]
        last = layer_norm(config.layer_norm_eps, self.dtype, "final_layer_norm")(last)
        end = end_positions(input_ids, config.eos_token_id)
        pooled = at_positions(last, end)
        return TextOutput(last, pooled, states, keys, values)


class ClipTextModel(nn.Module):
    """CLIP text model in the names of a Stable Diffusion `text_encoder` folder.

    Attributes:
        config: the shape.
        dtype: type of the computation.
        projection: whether the model ends with a linear map of the pooled state, without a bias
            (transformers' CLIPTextModelWithProjection, the second encoder of SDXL).
    """

    config: ClipTextConfig
    dtype: Any = jnp.float32
    projection: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "prompt token"],
        attention_mask: Int[Array, "prompt token"] | None = None,
        *,
        delta: Float[Array, "prompt dim"] | None = None,
        position: Int[Array, " prompt"] | None = None,
        block: int | None = None,
        hidden: Float[Array, "prompt token dim"] | None = None,
        start: int = 0,
    ) -> TextOutput:
        """Encode prompts, optionally edited and optionally from the middle.

        Args:
            input_ids: token ids; needed for `pooled` even when resuming.
            attention_mask: 1 at tokens that may be attended to (default: all, as Stable
                Diffusion does). Attention is causal in any case.
            delta: offset added to the output of block `block` at token `position`; the three go
                together.
            hidden: input of block `start` (the output of block `start - 1`); skips what is
                below. `start` may equal the number of blocks: only the final norm is left.

        Raises:
            ValueError: an incomplete or impossible edit, or a `start` out of range.
        """
        depth = self.config.num_hidden_layers
        if not 0 <= start <= depth:
            raise ValueError(f"start is {start}; the model has {depth} blocks")
        if start > 0 and hidden is None:
            raise ValueError(f"start is {start} without hidden; give the input of that block")
        edit = None
        if delta is not None or position is not None or block is not None:
            if delta is None or position is None or block is None:
                raise ValueError("an edit needs all of delta, position and block")
            if not start <= block < depth:
                raise ValueError(f"block is {block}; blocks {start} to {depth - 1} run")
            # A one-hot product, not a scatter: it fuses, and stays local when prompts are sharded.
            place = jax.nn.one_hot(position, input_ids.shape[1], dtype=self.dtype)
            edit = Edit(block, place[:, :, None] * delta.astype(self.dtype)[:, None, :])
        mask = None if attention_mask is None else attention_mask.astype(bool)
        model = TextTransformer(self.config, self.dtype, name="text_model")
        out: TextOutput = model(input_ids, mask, edit, hidden, start)
        if not self.projection:
            return out
        project = layers.Dense(
            self.config.projection_dim,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(self.config.hidden_size**-0.5),
            name="text_projection",
        )
        return out._replace(projected=project(out.pooled))


def at_positions(
    states: Float[Array, "prompt token dim"], positions: Int[Array, " prompt"]
) -> Float[Array, "prompt dim"]:
    """Each prompt's state at one of its tokens."""
    return jnp.take_along_axis(states, positions[:, None, None], axis=1)[:, 0]


def end_positions(
    input_ids: Int[Array, "prompt token"], eos_token_id: int
) -> Int[Array, " prompt"]:
    """Index of the token whose final state is the pooled text feature."""
    if eos_token_id == LEGACY_EOS:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eos_token_id, axis=-1)
