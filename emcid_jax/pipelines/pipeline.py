"""A Stable Diffusion as one value, loaded from and saved to diffusers' folder format."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike

from emcid_jax.diffusion.samplers import SAMPLERS, make_sampler
from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig, rename_vae_key
from emcid_jax.models.text import clip
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.models.text.fitting import fitted
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, tokenize
from emcid_jax.models.weights import params as weights
from emcid_jax.pipelines.diffusers_layout import (
    CLASSES,
    CONFIG_FILES,
    WEIGHT_FILES,
    write_configs,
    write_index,
)
from emcid_jax.pipelines.part_checks import require_fitting
from emcid_jax.runtime import checkpoints
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.runtime.text_files import read_json_object

__all__ = [
    "Pipeline",
    "load_pipeline",
    "make_pipeline",
    "save_pipeline",
    "tokenize",
    "with_text_params",
]

Params = dict[str, Any]

RENAMES = {"text_encoder": clip.disk_name, "unet": None, "vae": rename_vae_key}
"""Part -> name expected here of a tensor in any published layout, see `read_params`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A text-to-image model: modules, parameters and what surrounds them. Never mutated."""

    text: ClipTextModel
    unet: UNet2DCondition
    vae: AutoencoderKL
    params: Params
    """`text_encoder`, `unet` and `vae`: each the inner tree, float32."""
    schedule: NoiseSchedule
    configs: Mapping[str, Mapping[str, Any]]
    """The folder's own JSON for `text_encoder`, `unet`, `vae` and `scheduler`."""
    tokenizer: Tokenizer
    folder: Path
    """Where it was read from."""
    variant: str = ""
    """Which of its weight files, see `shards.weight_files`."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The content of `scheduler_config.json`."""
        return self.configs["scheduler"]

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Height, width and channels of the latents the model was trained on."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width, self.unet.config.in_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it draws, in pixels."""
        height, width, _ = self.latent_size
        return height * self.vae.config.downscale, width * self.vae.config.downscale


def make_pipeline(
    configs: Mapping[str, Mapping[str, Any]],
    params: Params,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: DTypeLike = jnp.float32,
) -> Pipeline:
    """Puts a pipeline together from parsed configs, see `Pipeline`; `dtype` is for computing.

    Raises:
        UserError: a config asks for something unsupported, or the parts do not fit together.
    """
    files = {part: folder / part / name for part, name in CONFIG_FILES.items()}
    text = ClipTextConfig.from_dict(configs["text_encoder"], files["text_encoder"])
    unet = UNetConfig.from_dict(configs["unet"], files["unet"])
    vae = VaeConfig.from_dict(configs["vae"], files["vae"])
    schedule = NoiseSchedule.from_dict(configs["scheduler"])
    make_sampler(configs["scheduler"], 1)  # refuses now what `generate` would refuse later
    text = fitted(text, tokenizer, files["text_encoder"], folder / "tokenizer")
    require_fitting(text, unet, vae, schedule, files)
    return Pipeline(
        ClipTextModel(text, dtype),
        UNet2DCondition(unet, dtype),
        AutoencoderKL(vae, dtype),
        params,
        schedule,
        configs,
        tokenizer,
        folder,
    )


def load_pipeline(
    folder: Path,
    dtype: DTypeLike = jnp.float32,
    variant: str = "",
    sharding: Sharding | None = None,
) -> Pipeline:
    """Reads a Stable Diffusion 1.x or 2.x folder in diffusers' format.

    Args:
        folder: holds `model_index.json` and a folder per component.
        dtype: type of the computation; parameters are float32 whatever is stored.
        variant: which weight files, e.g. `fp16` for `*.fp16.safetensors`; empty: the plain ones.
        sharding: where every parameter goes; None: to the default device.

    Raises:
        UserError: a folder or file is missing or damaged, another kind of model is inside, or
            configs and weights do not fit together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a Stable Diffusion folder of diffusers")
    index = read_json_object(folder / "model_index.json", "the model's index")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{folder / 'model_index.json'}: _class_name={shown(index.get('_class_name'))} is not "
            "supported; use a folder of a StableDiffusionPipeline"
        )
    for part, (library, name) in CLASSES.items():
        found = index.get(part)
        if found != [library, name]:
            raise UserError(
                f"{folder / 'model_index.json'}: {part}={shown(found)} is not supported; use {name}"
            )
    configs = {
        part: read_json_object(folder / part / file, f"the {part}'s config")
        for part, file in CONFIG_FILES.items()
    }
    # The index decides the sampler's class, whatever class wrote the file; diffusers does the same.
    name, written = _sampler_class(index, folder), configs["scheduler"].get("_class_name")
    if written not in (None, name):
        logging.warning(
            "%s: model_index.json says %s, scheduler_config.json %s; the former counts",
            folder,
            name,
            written,
        )
    configs["scheduler"] |= {"_class_name": name}
    tokenizer = load_tokenizer(folder / "tokenizer")
    empty = make_pipeline(configs, {}, tokenizer, folder, dtype)
    if checkpoints.holds_weights(folder):  # see tasks/convert
        params = checkpoints.load_weights(folder, parameter_shapes(empty), sharding)
    else:
        params = {
            part: weights.read_params(folder / part, abstract, RENAMES[part], variant, sharding)
            for part, abstract in parameter_shapes(empty).items()
        }
    return dataclasses.replace(empty, params=params, variant=variant)


def save_pipeline(pipeline: Pipeline, folder: Path, dtype: DTypeLike = jnp.float32) -> None:
    """Writes a folder that diffusers' `StableDiffusionPipeline` and `load_pipeline` read.

    Every file is written whole or not at all; `model_index.json` comes last. `dtype` is the type
    of the stored weights.
    """
    for part, file in WEIGHT_FILES.items():
        weights.write_params(folder / part / file, pipeline.params[part], dtype)
    write_configs(folder, pipeline.configs)
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    write_index(folder, pipeline.scheduler_config["_class_name"])


def with_text_params(pipeline: Pipeline, text_params: Params) -> Pipeline:
    """The pipeline with another text encoder; everything else is shared, nothing is changed.

    Its MLPs may be wider: an edit may have added hidden units.
    """
    first = text_params["text_model"]["encoder"]["layers.0"]["mlp"]["fc1"]["kernel"]
    params = pipeline.params | {"text_encoder": text_params}
    if first.shape[1] == pipeline.text.config.intermediate_size:
        return dataclasses.replace(pipeline, params=params)
    width = {"intermediate_size": first.shape[1]}
    wider = {**pipeline.configs["text_encoder"], **width}
    configs = {**pipeline.configs, "text_encoder": wider}
    text = pipeline.text.clone(config=dataclasses.replace(pipeline.text.config, **width))
    return dataclasses.replace(pipeline, text=text, configs=configs, params=params)


def _sampler_class(index: Mapping[str, Any], folder: Path) -> str:
    """The class that `model_index.json` names for the scheduler."""
    found = index.get("scheduler")
    for name in SAMPLERS:
        if found == ["diffusers", name]:
            return name
    raise UserError(
        f"{folder / 'model_index.json'}: scheduler={shown(found)} is not supported; use "
        f'["diffusers", NAME] with NAME one of {", ".join(SAMPLERS)}'
    )


def parameter_shapes(pipeline: Pipeline) -> Params:
    """Shapes and types of all parameters, by part, as `jax.ShapeDtypeStruct`s."""
    height, width = pipeline.image_size
    tokens = pipeline.tokenizer.model_max_length
    shape = jax.ShapeDtypeStruct
    states = shape((1, tokens, pipeline.text.config.hidden_size), jnp.float32)
    latents = shape((1, *pipeline.latent_size), jnp.float32)
    images = shape((1, height, width, pipeline.vae.config.in_channels), jnp.float32)
    return {
        "text_encoder": weights.abstract_params(pipeline.text, shape((1, tokens), jnp.int32)),
        "unet": weights.abstract_params(pipeline.unet, latents, shape((1,), jnp.int32), states),
        "vae": weights.abstract_params(pipeline.vae, images),
    }
