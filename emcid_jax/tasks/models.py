"""The model that a run's settings name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import jax.numpy as jnp

from emcid_jax.config import ExportDtype, ModelConfig
from emcid_jax.editing.export import stored_dtype
from emcid_jax.pipeline import Pipeline, load_pipeline
from emcid_jax.sources import find_model
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


def export_dtype(config: ModelConfig, pipeline: Pipeline) -> ExportDtype:
    """Stored type of an edited text encoder: what is asked for, else that of the weights read."""
    if config.export_dtype != "source":
        return config.export_dtype
    return cast(ExportDtype, stored_dtype(pipeline.folder / "text_encoder", config.variant))
