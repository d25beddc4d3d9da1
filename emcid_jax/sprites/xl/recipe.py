"""Sizes and training lengths of the bundled model of SDXL's shape, in diffusers' words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from emcid_jax.sprites.training import recipe
from emcid_jax.sprites.training.loop import Recipe

FIRST_BLOCKS = (0, 1, 2, 6, 7, 8, 9, 10, 11)
SECOND_BLOCKS = (0, 1, 2, 3, 4, 5, 7, 9, 10, 11)
"""Blocks of the first sprite model's encoder that make up the two new ones."""
SECOND_WIDTH = 208
PROJECTED = 96
"""Width of the second encoder's projected state."""
MLP = 4
"""Hidden units per width."""
PAD = "!"
"""What the second tokenizer fills up with, as SDXL's does."""
STITCHED = 2_000
"""Captions by which the UNet is stitched to the new encoders."""
SIZE_EMBEDDING = 16
"""Width of the embedding of each of the six sizes."""


@dataclasses.dataclass(frozen=True)
class XlRecipe:
    """Everything that decides the bundled weights, given the first model's."""

    images: int = 6_000
    """Drawn training pictures."""
    image_seed: int = 200
    """Seed of their pictures and captions."""
    unet: Recipe = Recipe(
        steps=1_200, batch=64, learning_rate=5e-4, warmup=30, average=0.99, seed=13
    )


def text_configs(first: Mapping[str, Any], pad: int) -> dict[str, dict[str, Any]]:
    """`config.json` of both text encoders; `first` is that of the first sprite model."""
    size = {"intermediate_size": MLP * recipe.WIDTH, "num_hidden_layers": len(FIRST_BLOCKS) + 1}
    second = {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": SECOND_WIDTH,
        "intermediate_size": MLP * SECOND_WIDTH,
        "num_hidden_layers": len(SECOND_BLOCKS) + 1,
        "hidden_act": "gelu",
        "pad_token_id": pad,
        "projection_dim": PROJECTED,
    }
    return {"text_encoder": {**first, **size}, "text_encoder_2": {**first, **second}}


def unet_config() -> dict[str, Any]:
    """`unet/config.json`."""
    return recipe.unet_config() | {
        "cross_attention_dim": recipe.WIDTH + SECOND_WIDTH,
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_EMBEDDING,
        "projection_class_embeddings_input_dim": PROJECTED + 6 * SIZE_EMBEDDING,
    }
