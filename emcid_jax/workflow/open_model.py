"""The model that a run's settings name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emcid_jax.config import ModelConfig
from emcid_jax.models.text.clip import disk_name
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.pipelines.sources import find_model
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.bundled import SHIPPED, model_folder
from emcid_jax.storage.text_files import read_json_object


def find_folder(config: ModelConfig) -> Path:
    """The model's folder in diffusers' layout; UserError if there is none, see `sources`."""
    if config.path in SHIPPED:
        return model_folder(config.path)
    return find_model(
        config.path,
        revision=config.revision,
        variant=config.variant,
        prediction=config.prediction,
    )


def open_model(config: ModelConfig, weight_shards: int = 1) -> Pipeline:
    """The model, loaded; UserError if it is missing, damaged or of another kind.

    With `weight_shards` the first so many devices hold a part of the UNet each.
    """
    devices = jax.local_devices()[:weight_shards]
    mesh = parallel.make_mesh(devices, weight_shards) if weight_shards > 1 else None

    def held(shapes: dict[str, Any]) -> dict[str, Any]:
        found = as_held(config, shapes)
        if mesh:
            unet = found["unet"]
            found["unet"] = parallel.shapes(unet, parallel.spread(unet, mesh))
        return found

    folder = find_folder(config)
    return load_pipeline(folder, jnp.dtype(config.dtype), config.variant, held)


def as_held(config: ModelConfig, shapes: dict[str, Any]) -> dict[str, Any]:
    """The parameters' shapes by part, with the types that they are held in."""
    kind = jnp.dtype(config.unet_storage)
    return shapes | {
        "unet": jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, kind), shapes["unet"])
    }


def read_edited(path: str, pipeline: Pipeline, field: str) -> dict[str, dict[str, Any]]:
    """Parameters of edited text encoders, by part.

    From a folder of one text encoder, or all that a workdir holds. UserError that names `field` if
    there is none, or one of another model.
    """
    folder = Path(path).expanduser()
    found = {name: folder / name for name in pipeline.texts if (folder / name).is_dir()}
    # A folder of another name is one of Stable Diffusion 1 or 2, or a copy of the first encoder's.
    found = found or {folder.name if folder.name in pipeline.texts else FIRST: folder}
    if not path or not folder.is_dir():
        raise UserError(
            f"{field} is {path!r}; give a text_encoder folder or the workdir of a finished edit"
        )
    return {name: read_text_params(pipeline, place, name) for name, place in found.items()}


def read_text_params(pipeline: Pipeline, folder: Path, name: str = FIRST) -> dict[str, Any]:
    """An edit of `pipeline`'s text encoder `name` from its folder, whose MLPs may be wider.

    UserError if it is one of another model.
    """
    model = pipeline.texts[name]
    config, about = model.config, folder / "config.json"
    if about.is_file():
        said = read_json_object(about, name)
        width = said.get("intermediate_size", config.intermediate_size)
        config = dataclasses.replace(config, intermediate_size=width)
    ids = jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32)
    abstract = abstract_params(model.clone(config=config), ids)
    return read_params(folder, abstract, disk_name)
