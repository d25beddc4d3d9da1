"""A Stable Diffusion folder as one value, and drawing with it.

Loading and saving use diffusers' folder format. Drawing is one compiled program per shape: text
states and noise in, bytes out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int, UInt8

from emcid_jax import parallel
from emcid_jax.diffusion.samplers import Ddim, Pndm, make_sampler
from emcid_jax.diffusion.sampling import guided, sample
from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.errors import UserError
from emcid_jax.files import write_atomically
from emcid_jax.models import clip_text, weights
from emcid_jax.models.clip_text import ClipTextConfig, ClipTextModel
from emcid_jax.models.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, tokenize
from emcid_jax.models.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.vae import AutoencoderKL, VaeConfig, rename_vae_key

__all__ = [
    "Pipeline",
    "encode_prompts",
    "generate",
    "image_batches",
    "initial_noise",
    "load_pipeline",
    "make_pipeline",
    "save_pipeline",
    "tokenize",
    "with_text_params",
]

Params = dict[str, Any]

_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
_WEIGHT_FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
_CONFIG_FILES = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
}
_RENAMES = {"text_encoder": clip_text.disk_name, "unet": None, "vae": rename_vae_key}

TEXT_BATCH = 64
"""Prompts per call of the text encoder."""


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
    text = ClipTextConfig.from_dict(dict(configs["text_encoder"]))
    unet = UNetConfig.from_dict(configs["unet"])
    vae = VaeConfig.from_dict(configs["vae"])
    make_sampler(configs["scheduler"], 1)  # refuses now what `generate` would refuse later
    if tokenizer.model_max_length > text.max_position_embeddings:
        raise UserError(
            f"{folder}: tokenizer has model_max_length={tokenizer.model_max_length}, text_encoder "
            f"max_position_embeddings={text.max_position_embeddings}; make them equal"
        )
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"{folder}: unet has in_channels={unet.in_channels}, vae "
            f"latent_channels={vae.latent_channels}; only text-to-image models are supported"
        )
    if unet.cross_attention_dim[0] != text.hidden_size:
        raise UserError(
            f"{folder}: unet has cross_attention_dim={unet.cross_attention_dim[0]}, text_encoder "
            f"hidden_size={text.hidden_size}; these parts are of different models"
        )
    return Pipeline(
        ClipTextModel(text, dtype),
        UNet2DCondition(unet, dtype),
        AutoencoderKL(vae, dtype),
        params,
        NoiseSchedule.from_dict(configs["scheduler"]),
        configs,
        tokenizer,
        folder,
    )


def load_pipeline(folder: Path, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """Reads a Stable Diffusion 1.x or 2.x folder in diffusers' format.

    Args:
        folder: holds `model_index.json` and a folder per component.
        dtype: type of the computation; parameters are float32 whatever is stored.

    Raises:
        UserError: a folder or file is missing or damaged, another kind of model is inside, or
            configs and weights do not fit together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a Stable Diffusion folder of diffusers")
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{folder / 'model_index.json'}: _class_name={index.get('_class_name')!r} is not "
            "supported; use a folder of a StableDiffusionPipeline"
        )
    for part, (library, name) in _CLASSES.items():
        found = index.get(part)
        if found != [library, name]:
            raise UserError(
                f"{folder / 'model_index.json'}: {part}={found!r} is not supported; use {name}"
            )
    configs = {part: _read_json(folder / part / file) for part, file in _CONFIG_FILES.items()}
    tokenizer = load_tokenizer(folder / "tokenizer")
    empty = make_pipeline(configs, {}, tokenizer, folder, dtype)
    params = {
        part: weights.read_params(folder / part, abstract, _RENAMES[part])
        for part, abstract in _abstract(empty).items()
    }
    return dataclasses.replace(empty, params=params)


def save_pipeline(pipeline: Pipeline, folder: Path, dtype: DTypeLike = jnp.float32) -> None:
    """Writes a folder that diffusers' `StableDiffusionPipeline` and `load_pipeline` read.

    Every file is written whole or not at all; `model_index.json` comes last. `dtype` is the type
    of the stored weights.
    """
    for part, file in _WEIGHT_FILES.items():
        weights.write_params(folder / part / file, pipeline.params[part], dtype)
    for part, file in _CONFIG_FILES.items():
        _write_json(folder / part / file, pipeline.configs[part])
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {part: list(name) for part, name in _CLASSES.items()}
    index |= {part: [None, None] for part in ("safety_checker", "feature_extractor")}
    index["scheduler"] = ["diffusers", pipeline.scheduler_config["_class_name"]]
    _write_json(folder / "model_index.json", index)


def with_text_params(pipeline: Pipeline, text_params: Params) -> Pipeline:
    """The pipeline with another text encoder; everything else is shared, nothing is changed."""
    return dataclasses.replace(pipeline, params=pipeline.params | {"text_encoder": text_params})


def encode_prompts(
    pipeline: Pipeline, prompts: Sequence[str], params: Params | None = None
) -> Float[np.ndarray, "prompt token dim"]:
    """Text states after the final layer norm, on the host.

    Args:
        pipeline: the model.
        prompts: texts; longer ones are cut to the tokenizer's `model_max_length`.
        params: used in place of `pipeline.params` (the same tree of three parts).
    """
    params = pipeline.params if params is None else params
    ids = tokenize(pipeline.tokenizer, prompts)
    # Few sizes, so that few programs are compiled: 1, 2, 4, ... TEXT_BATCH.
    size = min(TEXT_BATCH, 1 << max(len(ids) - 1, 0).bit_length())
    padded = np.resize(ids, (parallel.padded_size(max(len(ids), 1), size), ids.shape[1]))
    chunks = [
        np.asarray(_encode(params["text_encoder"], padded[i : i + size], text=pipeline.text))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(chunks)[: len(ids)]


def initial_noise(
    pipeline: Pipeline, seeds: Sequence[int]
) -> Float[np.ndarray, "image height width channel"]:
    """Unit-variance latents, each drawn by NumPy from its own seed: no image depends on others."""
    size = pipeline.latent_size
    noise = [np.random.default_rng(seed).standard_normal(size) for seed in seeds]
    return np.asarray(noise, np.float32).reshape(-1, *size)


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    negative: str = "",
    params: Params | None = None,
    batch: int = 16,
    mesh: Mesh | None = None,
) -> UInt8[np.ndarray, "image height width 3"]:
    """Draws one image per prompt and seed; arguments as in `image_batches`."""
    batches = image_batches(
        pipeline,
        prompts,
        seeds,
        steps=steps,
        guidance=guidance,
        negative=negative,
        params=params,
        batch=batch,
        mesh=mesh,
    )
    height, width = pipeline.image_size
    return np.concatenate([np.zeros((0, height, width, 3), np.uint8), *batches])


def image_batches(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    negative: str = "",
    params: Params | None = None,
    batch: int = 16,
    mesh: Mesh | None = None,
) -> Iterator[UInt8[np.ndarray, "image height width 3"]]:
    """Draws one image per prompt and seed, batch by batch and in order.

    An image is a function of its prompt, seed and the settings, not of its neighbours. Each unique
    prompt is encoded once.

    Args:
        pipeline: the model.
        prompts: one per image.
        seeds: one per image.
        steps: denoising steps; PNDM calls the UNet once more.
        guidance: strength of classifier-free guidance; at 1 the negative prompt is not run.
        negative: the prompt to guide away from.
        params: used in place of `pipeline.params` (the same tree of three parts).
        batch: images per call; rounded up to a multiple of the devices, the last one is padded.
        mesh: devices that share each batch; None computes where the parameters are.

    Raises:
        UserError: the scheduler cannot take that many steps.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one per image")
    sampler = make_sampler(pipeline.scheduler_config, steps)
    params = pipeline.params if params is None else params
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys([negative, *prompts]))}
    states = encode_prompts(pipeline, list(row), params)
    rows = np.array([[row[negative], row[prompt]] for prompt in prompts]).reshape(-1, 2)
    if guidance == 1.0:
        rows = rows[:, 1:]
    size = parallel.padded_size(min(batch, max(len(prompts), 1)), mesh.size if mesh else 1)
    models = {part: params[part] for part in ("unet", "vae")}
    if mesh:
        models = jax.device_put(models, parallel.replicated(mesh))
    for start in range(0, len(prompts), size):
        count = min(size, len(prompts) - start)
        index = np.resize(np.arange(start, start + count), size)
        arrays = states[rows[index]], initial_noise(pipeline, [seeds[i] for i in index.tolist()])
        if mesh:
            arrays = jax.device_put(arrays, parallel.sharded(mesh))
        images = draw(
            models,
            *arrays,
            jnp.float32(guidance),
            unet=pipeline.unet,
            vae=pipeline.vae,
            sampler=sampler,
            mesh=mesh,
        )
        yield np.asarray(images)[:count]


@functools.partial(jax.jit, static_argnames=("unet", "vae", "sampler", "mesh"))
def draw(
    params: Params,
    text: Float[Array, "image text token dim"],
    noise: Float[Array, "image height width channel"],
    guidance: Float[Array, ""],
    *,
    unet: UNet2DCondition,
    vae: AutoencoderKL,
    sampler: Ddim | Pndm,
    mesh: Mesh | None,
) -> UInt8[Array, "image pixel_height pixel_width 3"]:
    """The one program of drawing: denoises, decodes, rounds to bytes as diffusers does.

    `text` holds per image the negative and the positive prompt's states, or the positive's alone
    for no guidance. The images are split over `mesh`, if one is given.
    """
    contexts = text.reshape(-1, *text.shape[2:])

    def predict(latents: Array, timestep: Array) -> Array:
        timesteps = jnp.broadcast_to(timestep, len(latents))
        output = unet.apply({"params": params["unet"]}, latents, timesteps, contexts)
        return jnp.asarray(output, jnp.float32)

    denoiser = guided(predict, guidance) if text.shape[1] == 2 else predict
    latents = sample(denoiser, sampler, noise) / vae.config.scaling_factor
    images = vae.apply({"params": params["vae"]}, latents, method=AutoencoderKL.decode)
    images = jnp.round(jnp.clip(jnp.asarray(images) / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
    if mesh:
        images = jax.lax.with_sharding_constraint(images, parallel.sharded(mesh))
    return images


@functools.partial(jax.jit, static_argnames="text")
def _encode(
    params: Params, ids: Int[Array, "prompt token"], *, text: ClipTextModel
) -> Float[Array, "prompt token dim"]:
    output = text.apply({"params": params}, ids)
    return output.last_hidden_state.astype(jnp.float32)  # pyright: ignore[reportAttributeAccessIssue]


def _abstract(pipeline: Pipeline) -> Params:
    """Shapes of all parameters."""
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; this is not a complete diffusers folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}; a JSON object is expected")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, text.encode())
