"""Drawing with a pipeline: one compiled program per shape, text states and noise in, bytes out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, UInt8

from emcid_jax.diffusion.euler import Euler
from emcid_jax.diffusion.noise import NoiseSource, seeded_noise
from emcid_jax.diffusion.samplers import Ddim, Pndm, Sampler, make_sampler
from emcid_jax.diffusion.sampling import guided, sample
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.image.unet import UNet2DCondition
from emcid_jax.models.image.vae import AutoencoderKL
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.families import Family
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.finite import FIX, finite_rows, require_finite

Params = dict[str, Any]

TEXT_BATCH = 64
"""Prompts per call of the text encoder."""
SLICE = 512 * 512
"""Pixels that a device decodes at once: the decoder needs a hundred times what its image does."""


def encode_prompts(
    pipeline: Pipeline, prompts: Sequence[str], params: Params | None = None
) -> Conditioning:
    """What the denoiser reads of every prompt, without sizes; NumPy arrays, axis 0 is the prompt.

    Args:
        pipeline: the model.
        prompts: texts; longer ones are cut to the tokenizer's `model_max_length`.
        params: used in place of `pipeline.params` (the same tree of parts).

    Raises:
        UserError: a state is not finite.
    """
    params = pipeline.params if params is None else params
    ids = tuple(tokenize(tokenizer, prompts) for tokenizer in pipeline.tokenizers.values())
    count = len(prompts)
    # Few sizes, so that few programs are compiled: 1, 2, 4, ... TEXT_BATCH.
    size = min(TEXT_BATCH, 1 << max(count - 1, 0).bit_length())
    whole = parallel.padded_size(max(count, 1), size)
    padded = [np.resize(rows, (whole, rows.shape[1])) for rows in ids]
    encoders = tuple(params[name] for name in pipeline.texts)
    static = {"texts": tuple(pipeline.texts.values()), "family": pipeline.family}
    chunks = [
        jax.tree.map(
            np.asarray, _encode(encoders, tuple(x[i : i + size] for x in padded), **static)
        )
        for i in range(0, whole, size)
    ]
    found = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *chunks)
    for part in jax.tree.leaves(found):
        require_finite(part, "the text states", "prompt")
    return found


def unguided(pipeline: Pipeline, negative: str, params: Params | None = None) -> Conditioning:
    """What guidance leads away from: one row, of the prompt `negative`.

    Of no prompt, `""`, it is zeros where the model was trained so (`empty_is_zero`).
    """
    found = encode_prompts(pipeline, [negative], params)
    zero = pipeline.empty_is_zero and not negative
    return jax.tree.map(np.zeros_like, found) if zero else found


def time_ids(
    pipeline: Pipeline,
    rows: int,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
) -> Float[np.ndarray, "row id"] | None:
    """Size conditioning of pictures cut at `crop` (top, left) from ones of `size` (height, width).

    By default these are the model's own, uncut. None for models that read none.
    """
    if not pipeline.family.joined:
        return None
    ids = [*(size or pipeline.image_size), *crop, *pipeline.image_size]
    return np.tile(np.asarray(ids, np.float32), (rows, 1))


def initial_noise(
    pipeline: Pipeline, seeds: Sequence[int]
) -> Float[np.ndarray, "image height width channel"]:
    """Unit-variance latents, each drawn by NumPy from its own seed: no image depends on others."""
    return seeded_noise(pipeline.latent_size, seeds)[:, 0]


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
    noise: NoiseSource = "numpy",
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
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
        noise=noise,
        original_size=original_size,
        crop=crop,
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
    noise: NoiseSource = "numpy",
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
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
        negative: the prompt to guide away from; `""` is none, see `unguided`.
        params: used in place of `pipeline.params` (the same tree of parts).
        batch: images per call; rounded up to a multiple of the devices, the last one is padded.
        mesh: devices that share each batch; None computes where the parameters are.
        noise: who draws the noise of a seed, see `seeded_noise`.
        original_size: height and width that models with size conditioning are told; default: those
            of the image.
        crop: top and left of the crop that they are told.

    Raises:
        UserError: the scheduler cannot take that many steps, or what is drawn is not finite.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one per image")
    sampler = make_sampler(pipeline.scheduler_config, steps)
    params = pipeline.params if params is None else params
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys([negative, *prompts]))}
    states, free = encode_prompts(pipeline, list(row), params), row[negative]
    if pipeline.empty_is_zero and not negative:
        free = len(row)
        states = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), states)
    rows = np.array([[free, row[prompt]] for prompt in prompts]).reshape(-1, 2)
    if guidance == 1.0:
        rows = rows[:, 1:]
    states = states._replace(time_ids=time_ids(pipeline, len(row) + 1, original_size, crop))

    def chosen_states(index: Int[np.ndarray, " image"]) -> Conditioning:
        chosen = jax.tree.map(lambda part: part[rows[index]], states)
        return parallel.place(chosen, parallel.sharded(mesh)) if mesh else chosen

    yield from batches_of_states(
        pipeline,
        chosen_states,
        seeds,
        sampler=sampler,
        guidance=guidance,
        params=params,
        batch=batch,
        mesh=mesh,
        noise=noise,
    )


def batches_of_states(
    pipeline: Pipeline,
    states: Callable[[Int[np.ndarray, " image"]], Conditioning],
    seeds: Sequence[int],
    *,
    sampler: Ddim | Pndm | Euler,
    guidance: float,
    params: Params,
    batch: int,
    mesh: Mesh | None,
    noise: NoiseSource = "numpy",
) -> Iterator[UInt8[np.ndarray, "image height width 3"]]:
    """Draws one image per seed from text states, batch by batch and in order.

    `states` gives those of some images, with leading axes (image, text) as `draw` reads them and
    split over the mesh, if there is one; the other arguments are those of `image_batches`.
    """
    size = parallel.padded_size(min(batch, max(len(seeds), 1)), mesh.size if mesh else 1)
    models = {part: params[part] for part in ("unet", "vae")}
    if mesh:
        models = parallel.place(models, parallel.spread(models, mesh))
    for start in range(0, len(seeds), size):
        count = min(size, len(seeds) - start)
        index = np.resize(np.arange(start, start + count), size)
        chosen = [seeds[i] for i in index.tolist()]
        fresh = seeded_noise(pipeline.latent_size, chosen, 1 + sampler.fresh, noise)
        drawn = draw(
            models,
            states(index),
            parallel.place(fresh, parallel.sharded(mesh)) if mesh else fresh,
            jnp.float32(guidance),
            unet=pipeline.unet,
            vae=pipeline.vae,
            sampler=sampler,
            mesh=mesh,
        )
        images, finite = parallel.fetch(drawn)
        _require_finite(finite, chosen)
        yield images[:count]


class Finite(NamedTuple):
    """Whether what a picture is made from holds only numbers, part by part."""

    text: Bool[Array, " image"]
    latents: Bool[Array, "image end"]
    """Initial noise, and the latents after each call of the UNet."""
    pixels: Bool[Array, " image"]


def _require_finite(finite: Finite, seeds: Sequence[int]) -> None:
    """UserError that names the first part that is not finite, for the first such image."""
    text, latents, pixels = map(np.asarray, finite)
    bad = np.flatnonzero(~(text & latents.all(axis=1) & pixels))
    if not bad.size:
        return
    first, calls = bad[0], latents.shape[1] - 1
    call = int(latents[first].argmin())
    if not text[first]:
        part = "the text states"
    elif not latents[first].all():
        part = f"the UNet's prediction in call {call} of {calls}" if call else "the initial noise"
    else:
        part = "what the VAE decodes"
    raise UserError(f"picture of seed {seeds[first]}: {part} is not finite; {FIX}")


@functools.partial(jax.jit, static_argnames=("unet", "vae", "sampler", "mesh"))
def draw(
    params: Params,
    text: Conditioning,
    noise: Float[Array, "image draw height width channel"],
    guidance: Float[Array, ""],
    *,
    unet: UNet2DCondition,
    vae: AutoencoderKL,
    sampler: Sampler,
    mesh: Mesh | None,
) -> tuple[UInt8[Array, "image pixel_height pixel_width 3"], Finite]:
    """The one program of drawing: denoises, decodes, rounds to bytes as diffusers does.

    `text` holds per image (axes 0 and 1) the negative and the positive prompt's states, or the
    positive's alone for no guidance; `noise` the initial latents and what the sampler adds on the
    way. The images are split over `mesh`, if one is given.
    """
    contexts = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), text)

    def predict(latents: Array, timestep: Array) -> Array:
        timesteps = jnp.broadcast_to(timestep, len(latents))
        output = unet.apply({"params": params["unet"]}, latents, timesteps, *contexts)
        return jnp.asarray(output, jnp.float32)

    denoiser = guided(predict, guidance) if text.tokens.shape[1] == 2 else predict
    fresh = noise[:, 1:] if sampler.fresh else None
    latents, finite = sample(denoiser, sampler, noise[:, 0], fresh)
    latents = latents / vae.config.scaling_factor
    images, pixels = _decode(params["vae"], latents, vae, mesh.size if mesh else 1)
    drawn = images, Finite(_finite_texts(text), finite.T, pixels)
    return jax.lax.with_sharding_constraint(drawn, parallel.sharded(mesh)) if mesh else drawn


def _decode(
    params: Params,
    latents: Float[Array, "image height width channel"],
    vae: AutoencoderKL,
    devices: int,
) -> tuple[UInt8[Array, "image pixel_height pixel_width 3"], Bool[Array, " image"]]:
    """The images, and which are finite, decoded in slices that each take some of every device."""

    def decode(part: Array) -> tuple[Array, Array]:
        images = jnp.asarray(vae.apply({"params": params}, part, method=AutoencoderKL.decode))
        rounded = jnp.round(jnp.clip(images / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
        return rounded, finite_rows(images)

    count, *shape = latents.shape
    local = count // devices
    pixels = shape[0] * shape[1] * vae.config.downscale**2
    most = max(1, SLICE // pixels)
    size = max(n for n in range(1, min(local, most) + 1) if local % n == 0)
    if size == local:
        return decode(latents)
    # Images of one device are neighbours: (device, slice, image of the slice).
    grouped = jnp.moveaxis(latents.reshape(devices, -1, size, *shape), 1, 0)
    found = jax.lax.map(lambda part: decode(part.reshape(-1, *shape)), grouped)

    def in_order(part: Array) -> Array:
        part = part.reshape(len(grouped), devices, size, *part.shape[2:])
        return jnp.moveaxis(part, 0, 1).reshape(count, *part.shape[3:])

    return jax.tree.map(in_order, found)


def _finite_texts(text: Conditioning) -> Bool[Array, " image"]:
    parts = [finite_rows(part) for part in jax.tree.leaves(text)]
    return functools.reduce(jnp.logical_and, parts)


@functools.partial(jax.jit, static_argnames=("texts", "family"))
def _encode(
    params: tuple[Params, ...],
    ids: tuple[Int[Array, "prompt token"], ...],
    *,
    texts: tuple[ClipTextModel, ...],
    family: Family,
) -> Conditioning:
    outputs: list[Any] = [
        text.apply({"params": own}, rows)
        for text, own, rows in zip(texts, params, ids, strict=True)
    ]
    return family.condition(outputs)
