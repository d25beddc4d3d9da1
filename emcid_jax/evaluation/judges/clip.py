"""A CLIP model from a local folder: images and texts as vectors of one space.

Two layouts: a whole CLIP model in transformers' format (`openai/clip-vit-large-patch14`,
`laion/CLIP-ViT-bigG-14-laion2B-39B-b160k`, ...), and a sprite model, whose `image_tower/` was
trained against its own text encoder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from emcid_jax.evaluation.judges.classifier import normalisation
from emcid_jax.evaluation.judges.features import Embedder
from emcid_jax.evaluation.judges.resize import centred
from emcid_jax.models.scoring.clip_vision import (
    ClipVisionConfig,
    ClipVisionModelWithProjection,
    VisionOutput,
)
from emcid_jax.models.text import clip
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, TextOutput
from emcid_jax.models.text.fitting import fitted
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer, tokenize
from emcid_jax.models.weights.params import abstract_params, params_hash, read_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.finite import require_finite
from emcid_jax.storage.hashing import fingerprint
from emcid_jax.storage.text_files import read_json_object

TOWER = "image_tower"
"""Folder of the image half in a sprite model."""
TEXT_BATCH = 64
"""Texts per call of the text half."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Both halves, frozen; made by `load_clip`."""

    images: Embedder
    """Images to projected class tokens of length 1."""
    text: ClipTextModel
    params: Mapping[str, Any]
    """`text_model` and `text_projection`."""
    tokenizer: Tokenizer
    fingerprint: str
    """SHA-256 over everything that decides a score."""

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """Vectors of length 1; texts are cut to the tokenizer's `model_max_length`.

        UserError if a vector is not finite.
        """
        ids = tokenize(self.tokenizer, texts)
        found = [np.zeros((0, self.images.dim), np.float32)]
        for start in range(0, len(ids), TEXT_BATCH):
            part = ids[start : start + TEXT_BATCH]
            padded = np.resize(part, (TEXT_BATCH, ids.shape[1]))
            vectors = _embed_texts(self.params, padded, text=self.text)
            found.append(np.asarray(vectors)[: len(part)])
        return require_finite(np.concatenate(found), "CLIP vectors", "text")


def find_clip(path: str, model: Path, field: str) -> Clip:
    """The CLIP model that the setting `field` = `path` names; empty: that of a sprite `model`.

    UserError if there is none, or an unfit one.
    """
    if not path and not (model / TOWER).is_dir():
        raise UserError(
            f"{field} is empty, but {model} has no {TOWER}; give the folder of a CLIP model, e.g. "
            "openai/clip-vit-large-patch14"
        )
    return load_clip(Path(path) if path else model)


def load_clip(folder: Path) -> Clip:
    """Reads a folder of either layout. UserError names the file and field that is wrong."""
    if (folder / TOWER).is_dir():
        return _load_sprite_clip(folder)
    file = folder / "config.json"
    config = read_json_object(file, "the CLIP model's config")
    for half in ("text_config", "vision_config"):
        if not isinstance(config.get(half), dict):
            raise UserError(
                f"{file}: field {half} is missing; give the folder of a whole "
                "CLIP model, e.g. openai/clip-vit-large-patch14"
            )
    tokenizer = load_tokenizer(folder)
    text_config = ClipTextConfig.from_dict(config["text_config"], file)
    text = ClipTextModel(fitted(text_config, tokenizer, file, folder))
    vision_config = ClipVisionConfig.from_dict(config, file)
    vision_config.require_colour(file)
    vision = ClipVisionModelWithProjection(vision_config)
    shapes = _vision_shapes(vision) | _text_shapes(text) | _projection_shape(text, vision)
    params = read_params(folder, shapes, lambda name: None if name == "logit_scale" else name)
    preprocessor = folder / "preprocessor_config.json"
    read_json_object(preprocessor, "the CLIP model's preprocessor")
    return _clip(text, vision, params, tokenizer, preprocessor)


def _load_sprite_clip(folder: Path) -> Clip:
    tower_file, text_file = (folder / part / "config.json" for part in (TOWER, "text_encoder"))
    vision_json = read_json_object(tower_file, "the image tower's config")
    text_json = read_json_object(text_file, "the text encoder's config")
    tokenizer = load_tokenizer(folder / "tokenizer")
    text_config = ClipTextConfig.from_dict(text_json, text_file)
    text = ClipTextModel(fitted(text_config, tokenizer, text_file, folder / "tokenizer"))
    vision_config = ClipVisionConfig.from_dict(vision_json, tower_file)
    vision_config.require_colour(tower_file)
    vision = ClipVisionModelWithProjection(vision_config)
    shapes = _vision_shapes(vision) | _projection_shape(text, vision)
    params = read_params(folder / TOWER, shapes) | read_params(
        folder / "text_encoder", _text_shapes(text), clip.disk_name
    )
    preprocessor = folder / TOWER / "preprocessor_config.json"
    return _clip(text, vision, params, tokenizer, preprocessor)


def _clip(
    text: ClipTextModel,
    vision: ClipVisionModelWithProjection,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    preprocessor: Path,
) -> Clip:
    mean, std = normalisation(preprocessor)
    shift, scale = np.array(mean, np.float32), np.array(std, np.float32)
    size = vision.config.image_size

    def prepare(image: np.ndarray) -> np.ndarray:
        pixels = centred(image, size).astype(np.float32) / np.float32(255)
        return (pixels - shift) / scale

    halves = [
        {name: params[name] for name in names}
        for names in (("vision_model", "visual_projection"), ("text_model", "text_projection"))
    ]
    image_print, text_print = map(params_hash, halves)
    image_print = fingerprint(image_print, json.dumps([size, mean, std]))
    images = Embedder(
        "CLIP",
        image_print,
        vision.config.projection_dim,
        prepare,
        functools.partial(_embed_images, halves[0], model=vision),
    )
    vocabulary = json.dumps(tokenizer.backend_tokenizer.to_str())
    return Clip(
        images, text, halves[1], tokenizer, fingerprint(image_print, text_print, vocabulary)
    )


def _vision_shapes(vision: ClipVisionModelWithProjection) -> dict[str, Any]:
    side, channels = vision.config.image_size, vision.config.num_channels
    return abstract_params(vision, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32))


def _text_shapes(text: ClipTextModel) -> dict[str, Any]:
    return abstract_params(text, jax.ShapeDtypeStruct((1, 2), jnp.int32))


def _projection_shape(text: ClipTextModel, vision: ClipVisionModelWithProjection) -> dict[str, Any]:
    shape = (text.config.hidden_size, vision.config.projection_dim)
    return {"text_projection": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}


@functools.partial(jax.jit, static_argnames="model")
def _embed_images(
    params: Any,
    pixels: Float[Array, "image height width 3"],
    *,
    model: ClipVisionModelWithProjection,
) -> Float[Array, "image dim"]:
    return _unit(cast(VisionOutput, model.apply({"params": params}, pixels)).image_embeds)


@functools.partial(jax.jit, static_argnames="text")
def _embed_texts(
    params: Any, ids: Int[Array, "text token"], *, text: ClipTextModel
) -> Float[Array, "text dim"]:
    model = {"text_model": params["text_model"]}
    pooled = cast(TextOutput, text.apply({"params": model}, ids)).pooled
    return _unit(pooled @ params["text_projection"]["kernel"])


def _unit(vectors: Float[Array, "row dim"]) -> Float[Array, "row dim"]:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
