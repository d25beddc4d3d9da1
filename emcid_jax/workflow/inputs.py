"""What tasks read before they start: requests, model folder, edited layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from emcid_jax.concepts.conflicts import require_consistent
from emcid_jax.concepts.forms import with_forms
from emcid_jax.concepts.readers import manifests
from emcid_jax.concepts.readers.texts import read_names
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EditConfig, ModelConfig, RequestsConfig, StageTwoConfig
from emcid_jax.editing.encoder.sites import Site, sites
from emcid_jax.models.text.encoder import FIRST, TextEncoder
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow.open_model import find_folder


def read_requests(config: RequestsConfig) -> list[EditRequest]:
    """The requests of the file, or of `sprites`, checked one by one and against each other."""
    if config.path == "sprites":
        from emcid_jax.sprites.mixed import mixed_requests

        requests = mixed_requests()
    else:
        requests = manifests.read_requests(Path(config.path), config.templates or None)
    requests = with_forms(requests[: config.count or None], config.forms)
    for conflict in require_consistent(requests):
        logging.warning("%s", conflict.message)
    return requests


def names_to_keep(names: Sequence[str], path: str, field: str) -> list[str]:
    """`names`, and those that the setting `field` = `path` holds: a file, or `sprites`.

    UserError if the file cannot be read.
    """
    if path == "sprites":
        from emcid_jax.sprites.catalogue import catalogue

        return [*names, *catalogue().objects]
    return [*names, *(read_names(path, field) if path else ())]


def require_model(config: ModelConfig) -> Path:
    """The folder of the model that `config` names; UserError if there is none."""
    folder = find_folder(config)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"config.model.path is {config.path!r}, but {folder} is no diffusers folder (it has no "
            "model_index.json); give `sprites` or a Stable Diffusion folder"
        )
    return folder


def encoder_of(pipeline: Pipeline, name: str) -> TextEncoder:
    """The text encoder that `config.encoder` names. UserError if the model has no such part."""
    for encoder in pipeline.encoders:
        if encoder.name == name:
            return encoder
    raise UserError(
        f"config.encoder is {name!r}, but {pipeline.folder} has {', '.join(pipeline.texts)}"
    )


def require_one_encoder(pipeline: Pipeline, task: str) -> None:
    """UserError, for tasks that know one text encoder, if the model has several."""
    if len(pipeline.texts) > 1:
        raise UserError(
            f"config.model.path: {pipeline.folder} has {len(pipeline.texts)} text encoders, which "
            f"task {task} does not take; give a model of Stable Diffusion 1 or 2"
        )


def require_blocks(config: EditConfig, pipeline: Pipeline) -> None:
    """UserError unless the text encoders have all blocks that either stage of a job asks for."""
    require_layers(config.stage_two, sites(config.stage_one, pipeline.texts), pipeline)


def require_layers(config: StageTwoConfig, where: Sequence[Site], pipeline: Pipeline) -> None:
    """UserError unless the text encoders have all layers that `config` edits.

    `where` are the sites of the memories.
    """
    for site in where:
        field = "layers" if site.encoder == FIRST else "second_layers"
        own, blocks = config.of(site.encoder), pipeline.texts[site.encoder].config.num_hidden_layers
        if not own.layers or own.layers[-1] >= blocks:
            raise UserError(
                f"config.stage_two.{field} is {own.layers}, but the {site.encoder} of "
                f"{pipeline.folder} has blocks 0 to {blocks - 1}"
            )
        own.check()
