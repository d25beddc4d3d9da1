"""A text-to-image model as one value, loaded from and saved to diffusers' folder format."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emcid_jax.diffusion.samplers import SAMPLERS, UNDRAWN, require_known
from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.conditioning import TIME_IDS, Conditioning
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig, rename_vae_key
from emcid_jax.models.text import clip
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, TextOutput
from emcid_jax.models.text.encoder import FIRST, SECOND, TextEncoder
from emcid_jax.models.text.fitting import fitted
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, tokenize
from emcid_jax.models.weights import params as weights
from emcid_jax.pipelines.diffusers_layout import write_configs, write_index
from emcid_jax.pipelines.families import SD, Family, read_config, read_family
from emcid_jax.pipelines.part_checks import require_fitting
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.storage import checkpoints
from emcid_jax.storage.text_files import read_json_object

__all__ = [
    "Pipeline",
    "load_pipeline",
    "make_pipeline",
    "save_pipeline",
    "tokenize",
    "with_text_params",
]

Params = dict[str, Any]

RENAMES = {FIRST: clip.disk_name, SECOND: clip.disk_name, "unet": None, "vae": rename_vae_key}
"""Part -> name expected here of a tensor in any published layout, see `read_params`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A text-to-image model: modules, parameters and what surrounds them. Never mutated."""

    family: Family
    texts: Mapping[str, ClipTextModel]
    """The text encoders by part, in the family's order."""
    unet: UNet2DCondition
    vae: AutoencoderKL
    params: Params
    """Every encoder's part, `unet` and `vae`: each the inner tree, float32 but for what
    `load_pipeline` was told to hold otherwise."""
    schedule: NoiseSchedule
    configs: Mapping[str, Mapping[str, Any]]
    """The folder's own JSON for every encoder, `unet`, `vae` and `scheduler`."""
    tokenizers: Mapping[str, Tokenizer]
    """By the encoder's part."""
    folder: Path
    """Where it was read from."""
    variant: str = ""
    """Which of its weight files, see `shards.weight_files`."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further keys of `model_index.json` that decide what is drawn."""

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders with all that belongs to each."""
        return tuple(
            TextEncoder(name, model, self.params[name], self.tokenizers[name])
            for name, model in self.texts.items()
        )

    @property
    def encoder(self) -> TextEncoder:
        """The first text encoder: the only one of Stable Diffusion 1.x and 2.x."""
        return self.encoders[0]

    @property
    def dtype(self) -> Any:
        """Type of the computation."""
        return self.unet.dtype

    def condition(self, texts: Mapping[str, TextOutput]) -> Conditioning:
        """What the denoiser reads of the text encoders' outputs, by their names, without sizes."""
        return self.family.condition([texts[name] for name in self.texts])

    @property
    def empty_is_zero(self) -> bool:
        """Whether guidance away from the empty prompt reads zeros in place of its states."""
        return self.family.joined and bool(self.options.get("force_zeros_for_empty_prompt", True))

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
    tokenizers: Tokenizer | Mapping[str, Tokenizer],
    folder: Path,
    dtype: DTypeLike = jnp.float32,
    family: Family = SD,
    options: Mapping[str, Any] | None = None,
) -> Pipeline:
    """Puts a pipeline together from parsed configs, see `Pipeline`; `dtype` is for computing.

    `tokenizers` go by the encoder's part, or are one for all encoders.

    Raises:
        UserError: a config asks for something unsupported, or the parts do not fit together.
    """
    files = {part: folder / part / name for part, name in family.config_files.items()}
    unet = UNetConfig.from_dict(configs["unet"], files["unet"])
    vae = VaeConfig.from_dict(configs["vae"], files["vae"])
    schedule = NoiseSchedule.from_dict(configs["scheduler"])
    require_known(configs["scheduler"], overruled=not family.joined)
    if not isinstance(tokenizers, Mapping):
        tokenizers = dict.fromkeys(family.text_parts, tokenizers)
    texts = {}
    for part in family.encoders:
        config = ClipTextConfig.from_dict(configs[part.name], files[part.name])
        texts[part.name] = fitted(
            config, tokenizers[part.name], files[part.name], folder / part.tokenizer
        )
    _require_one_vocabulary(family, tokenizers, folder)
    require_fitting(family, texts, unet, vae, schedule, files)
    return Pipeline(
        family,
        {
            part.name: ClipTextModel(texts[part.name], dtype, projection=part.projection)
            for part in family.encoders
        },
        UNet2DCondition(unet, dtype),
        AutoencoderKL(vae, dtype),
        params,
        schedule,
        configs,
        tokenizers,
        folder,
        options=options or {},
    )


def _require_one_vocabulary(
    family: Family, tokenizers: Mapping[str, Tokenizer], folder: Path
) -> None:
    """UserError unless all tokenizers have the same tokens: prompts are split once for all."""
    first, *others = family.encoders
    for part in others:
        words = [tokenizers[one.name].backend_tokenizer for one in (first, part)]
        if None not in words and words[0].get_vocab() != words[1].get_vocab():
            raise UserError(
                f"{folder / part.tokenizer}: has other tokens than {first.tokenizer}; the text "
                "encoders of a model need one vocabulary: take both from one model"
            )


def load_pipeline(
    folder: Path,
    dtype: DTypeLike = jnp.float32,
    variant: str = "",
    held: Callable[[Params], Params] | None = None,
) -> Pipeline:
    """Reads a folder of Stable Diffusion 1.x, 2.x or XL in diffusers' format.

    Args:
        folder: holds `model_index.json` and a folder per component.
        dtype: type of the computation.
        variant: which weight files, e.g. `fp16` for `*.fp16.safetensors`; empty: the plain ones.
        held: how parameters are held, from their shapes (`parameter_shapes`) to the same with other
            types and shardings; default: float32 on the default device, whatever is stored.

    Raises:
        UserError: a folder or file is missing or damaged, another kind of model is inside, or
            configs and weights do not fit together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a Stable Diffusion folder of diffusers")
    index = read_json_object(folder / "model_index.json", "the model's index")
    family = read_family(index, folder)
    for part, (library, name) in family.classes.items():
        found = index.get(part)
        if found != [library, name]:
            raise UserError(
                f"{folder / 'model_index.json'}: {part}={shown(found)} is not supported; use {name}"
            )
    configs = {
        part: read_config(part, folder / part / file, f"the {part}'s config")
        for part, file in family.config_files.items()
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
    tokenizers = {part.name: load_tokenizer(folder / part.tokenizer) for part in family.encoders}
    options = {name: index[name] for name, _ in family.options if name in index}
    empty = make_pipeline(configs, {}, tokenizers, folder, dtype, family, options)
    shapes = parameter_shapes(empty)
    shapes = held(shapes) if held else shapes
    if checkpoints.holds_weights(folder):  # see tasks/convert
        params = checkpoints.load_weights(folder, shapes)
    else:
        params = {
            part: weights.read_params(folder / part, abstract, RENAMES[part], variant)
            for part, abstract in shapes.items()
        }
    return dataclasses.replace(empty, params=params, variant=variant)


def save_pipeline(pipeline: Pipeline, folder: Path, dtype: DTypeLike = jnp.float32) -> None:
    """Writes a folder that diffusers' pipeline of this family and `load_pipeline` read.

    Every file is written whole or not at all; `model_index.json` comes last. `dtype` is the type
    of the stored weights.
    """
    family = pipeline.family
    for part, file in family.weight_files.items():
        weights.write_params(folder / part / file, pipeline.params[part], dtype)
    write_configs(folder, pipeline.configs, family)
    for part in family.encoders:
        save_tokenizer(pipeline.tokenizers[part.name], folder / part.tokenizer)
    write_index(folder, pipeline.scheduler_config["_class_name"], family, pipeline.options)


def with_text_params(pipeline: Pipeline, edited: Mapping[str, Params]) -> Pipeline:
    """The pipeline with other parameters of text encoders, by part; nothing given is changed.

    Their MLPs may be wider: an edit may have added hidden units.
    """
    texts, configs = dict(pipeline.texts), dict(pipeline.configs)
    for name, params in edited.items():
        first = params["text_model"]["encoder"]["layers.0"]["mlp"]["fc1"]["kernel"]
        width = {"intermediate_size": first.shape[1]}
        config = texts[name].config
        if width["intermediate_size"] != config.intermediate_size:
            texts[name] = texts[name].clone(config=dataclasses.replace(config, **width))
            configs[name] = {**configs[name], **width}
    params = pipeline.params | dict(edited)
    return dataclasses.replace(pipeline, texts=texts, configs=configs, params=params)


def _sampler_class(index: Mapping[str, Any], folder: Path) -> str:
    """The class that `model_index.json` names for the scheduler."""
    found = index.get("scheduler")
    known = (*SAMPLERS, *UNDRAWN)
    for name in known:
        if found == ["diffusers", name]:
            return name
    raise UserError(
        f"{folder / 'model_index.json'}: scheduler={shown(found)} is not supported; use "
        f'["diffusers", NAME] with NAME one of {", ".join(known)}'
    )


def parameter_shapes(pipeline: Pipeline) -> Params:
    """Shapes and types of all parameters, by part, as `jax.ShapeDtypeStruct`s."""
    height, width = pipeline.image_size
    shape = jax.ShapeDtypeStruct
    latents = shape((1, *pipeline.latent_size), jnp.float32)
    images = shape((1, height, width, pipeline.vae.config.in_channels), jnp.float32)
    texts = {
        name: weights.abstract_params(model, shape((1, 2), jnp.int32))
        for name, model in pipeline.texts.items()
    }
    read = conditioning_shapes(pipeline, 1)
    return texts | {
        "unet": weights.abstract_params(pipeline.unet, latents, shape((1,), jnp.int32), *read),
        "vae": weights.abstract_params(pipeline.vae, images),
    }


def conditioning_shapes(pipeline: Pipeline, *rows: int) -> Conditioning:
    """Shapes of what the denoiser reads, with leading axes `rows`."""
    tokens = min(tokenizer.model_max_length for tokenizer in pipeline.tokenizers.values())
    configs = [model.config for model in pipeline.texts.values()]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct((*rows, *sizes), jnp.float32)

    states = shape(tokens, sum(config.hidden_size for config in configs))
    if not pipeline.family.joined:
        return Conditioning(states)
    return Conditioning(states, shape(configs[-1].projection_dim), shape(len(TIME_IDS)))
