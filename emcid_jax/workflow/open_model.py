"""The model that a run's settings name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emcid_jax.config import ModelConfig
from emcid_jax.models.text.clip import disk_name
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.pipelines.sources import find_model
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.text_files import read_json_object
from emcid_jax.sprites.bundled import BUNDLED, model_folder


def find_folder(config: ModelConfig) -> Path:
    """The model's folder in diffusers' layout; UserError if there is none, see `sources`."""
    if config.path == BUNDLED:
        return model_folder(BUNDLED)
    return find_model(
        config.path,
        revision=config.revision,
        variant=config.variant,
        prediction=config.prediction,
    )


def open_model(config: ModelConfig) -> Pipeline:
    """The model, loaded; UserError if it is missing, damaged or of another kind."""
    return load_pipeline(find_folder(config), jnp.dtype(config.dtype), config.variant)


def read_edited(path: str, pipeline: Pipeline, field: str) -> dict[str, Any]:
    """The text encoder's parameters in a folder, or in a workdir's `text_encoder`.

    UserError that names `field` if there is none, or one of another model.
    """
    folder = Path(path).expanduser()
    folder = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    if not path or not folder.is_dir():
        raise UserError(
            f"{field} is {path!r}; give a text_encoder folder or the workdir of a finished edit"
        )
    return read_text_params(pipeline, folder)


def read_text_params(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """An edit of `pipeline`'s text encoder from its folder, whose MLPs may be wider.

    UserError if it is one of another model.
    """
    config = pipeline.encoder.model.config
    about = folder / "config.json"
    if about.is_file():
        said = read_json_object(about, "text_encoder")
        width = said.get("intermediate_size", config.intermediate_size)
        config = dataclasses.replace(config, intermediate_size=width)
    ids = jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32)
    abstract = abstract_params(pipeline.encoder.model.clone(config=config), ids)
    return read_params(folder, abstract, disk_name)
