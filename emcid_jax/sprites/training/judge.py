"""Trains the judges: a ViT that reads every factor of an image, and a CLIP-style image tower.

The ViT learns factors and is then folded into one classifier over names: a class's logit is the
sum of its factors' logits, so the softmax over all looks is the product of the factors' softmaxes.
The image tower is trained contrastively against the world's own text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int, UInt8

from emcid_jax.models.scoring.clip_vision import ClipVisionModelWithProjection, VisionOutput
from emcid_jax.models.scoring.vit import ViTForImageClassification
from emcid_jax.sprites.catalogue import GENDERS, PROFESSIONS, SCENES, catalogue
from emcid_jax.sprites.drawing import to_float
from emcid_jax.sprites.factors import FACTORS
from emcid_jax.sprites.training.loop import Recipe, fit
from emcid_jax.sprites.training.text import factor_loss

_NOISE = 0.15
_TEMPERATURE = 0.07


def _distorted(pixels: Float[Array, "image size size 3"], key: Array) -> Array:
    """Images as a sampler might leave them: noise, faint contrast, half of them blurred."""
    keys = jax.random.split(key, 4)
    shape = (len(pixels), 1, 1, 1)
    blurred = jax.image.resize(
        jax.image.resize(pixels, (len(pixels), 32, 32, 3), "linear"), pixels.shape, "linear"
    )
    pixels = jnp.where(jax.random.bernoulli(keys[0], 0.5, shape), blurred, pixels)
    pixels *= jax.random.uniform(keys[1], shape, minval=0.8, maxval=1.1)
    level = jax.random.uniform(keys[2], shape, maxval=_NOISE)
    return jnp.clip(pixels + level * jax.random.normal(keys[3], pixels.shape), -1, 1)


def train_classifier(
    model: ViTForImageClassification,
    images: UInt8[np.ndarray, "image size size 3"],
    labels: Int[np.ndarray, "image factor"],
    recipe: Recipe,
    folder: Path,
) -> Any:
    """Parameters of a ViT whose outputs are all factors' labels side by side."""

    def loss(params, batch, key):
        pixels, label = batch
        logits = model.apply({"params": params}, _distorted(pixels, key))
        return factor_loss(jnp.asarray(logits, jnp.float32), label)

    def batch_at(step: int):
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.integers(len(images), size=recipe.batch)
        return to_float(images[rows]), labels[rows]

    example = jnp.zeros((1, *images.shape[1:]))
    params = model.init(jax.random.key(recipe.seed), example)["params"]
    return fit("judge", loss, params, batch_at, recipe, folder)


def fold_classifier(factor_params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The factor ViT as a classifier over names: its parameters and the label of every output."""
    world = catalogue()
    first = dict(zip((f.name for f in FACTORS), _starts(), strict=True))
    looks = ("shape", "colour", "texture")
    styles = ("palette", "stroke", "frame")
    rows: list[list[int]] = []
    labels: list[str] = list(world.labels)
    rows += [[first[f] + v for f, v in zip(looks, look, strict=True)] for look in world.looks]
    for artist, style in zip(world.artists, world.styles, strict=True):
        labels.append(f"artist: {artist}")
        rows.append([first[f] + v for f, v in zip(styles, style, strict=True)])
    sizes = {factor.name: factor.values for factor in FACTORS}
    for offset, name in enumerate(("art", "none")):
        labels.append(f"artist: {name}")
        rows.append([first[f] + sizes[f] + offset for f in styles])
    for factor, names in (("scene", SCENES), ("profession", PROFESSIONS), ("gender", GENDERS)):
        labels += [f"{factor}: {name}" for name in names]
        rows += [[first[factor] + value] for value in range(len(names))]
    fold = np.zeros((sum(f.size for f in FACTORS), len(rows)), np.float32)
    for column, members in enumerate(rows):
        fold[members, column] = 1
    head = factor_params["classifier"]
    folded = {
        "kernel": np.asarray(head["kernel"]) @ fold,
        "bias": np.asarray(head["bias"]) @ fold,
    }
    return {**factor_params, "classifier": folded}, labels


def _starts() -> list[int]:
    return [0, *np.cumsum([factor.size for factor in FACTORS])[:-1].tolist()]


def train_image_tower(
    model: ClipVisionModelWithProjection,
    images: UInt8[np.ndarray, "image size size 3"],
    text: Float[np.ndarray, "image dim"],
    recipe: Recipe,
    folder: Path,
) -> Any:
    """Parameters of the tower and of the text projection that meets it (InfoNCE both ways)."""
    keys = jax.random.split(jax.random.key(recipe.seed))
    projection = model.config.projection_dim
    params = model.init(keys[0], jnp.zeros((1, *images.shape[1:])))["params"]
    kernel = jax.random.normal(keys[1], (text.shape[1], projection)) * text.shape[1] ** -0.5
    params = {"image": params, "text_projection": {"kernel": kernel}}

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(params, batch, key):
        pixels, states = batch
        out = cast(VisionOutput, model.apply({"params": params["image"]}, _distorted(pixels, key)))
        read = states @ params["text_projection"]["kernel"]
        logits = unit(jnp.asarray(out.image_embeds, jnp.float32)) @ unit(read).T / _TEMPERATURE
        match = jnp.arange(len(logits))
        both = [
            optax.softmax_cross_entropy_with_integer_labels(x, match) for x in (logits, logits.T)
        ]
        return 0.5 * jnp.mean(both[0] + both[1])

    def batch_at(step: int):
        rng = np.random.default_rng([recipe.seed, step])
        rows = rng.integers(len(images), size=recipe.batch)
        return to_float(images[rows]), text[rows]

    return fit("image_tower", loss, params, batch_at, recipe, folder)


def judge_config(model_config: Any, labels: Sequence[str]) -> dict[str, Any]:
    """`config.json` of the folded classifier, as transformers reads it."""
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model_config.hidden_size,
        "intermediate_size": model_config.intermediate_size,
        "num_hidden_layers": model_config.num_hidden_layers,
        "num_attention_heads": model_config.num_attention_heads,
        "hidden_act": model_config.hidden_act,
        "layer_norm_eps": model_config.layer_norm_eps,
        "image_size": model_config.image_size,
        "patch_size": model_config.patch_size,
        "num_channels": model_config.num_channels,
        "qkv_bias": model_config.qkv_bias,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
