"""Images drawn with offsets added to the text states: an edit tried out without writing it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from emcid_jax import parallel
from emcid_jax.diffusion.noise import seeded_noise
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.generation import draw, encode_prompts
from emcid_jax.models.clip_text import ClipTextModel, TextOutput
from emcid_jax.pipeline import Params, Pipeline


def offset_batches(
    pipeline: Pipeline,
    ids: Int[np.ndarray, "image token"],
    positions: Int[np.ndarray, " image"],
    offsets: Float[np.ndarray, "image dim"],
    seeds: Sequence[int],
    *,
    block: int,
    steps: int,
    guidance: float,
    batch: int,
    mesh: Mesh,
) -> Iterator[UInt8[np.ndarray, "image height width 3"]]:
    """Draws one image per prompt, offset and seed, batch by batch and in order.

    Args:
        pipeline: the model.
        ids: token ids of the prompts.
        positions: the token that an offset is added to, in the output of `block`.
        offsets: one per image.
        seeds: one per image.
        block: text block, Stage I's L.
        steps: denoising steps.
        guidance: strength of classifier-free guidance against the empty prompt.
        batch: images per call, rounded up to a multiple of the devices.
        mesh: devices that share each batch.
    """
    sampler = make_sampler(pipeline.scheduler_config, steps)
    everywhere, split = parallel.replicated(mesh), parallel.sharded(mesh)
    params = parallel.place(pipeline.params, everywhere)
    negatives = 1 if guidance != 1.0 else 0
    free = parallel.place(encode_prompts(pipeline, [""])[:negatives], everywhere)
    size = parallel.padded_size(min(batch, len(ids)), mesh.size)
    for start in range(0, len(ids), size):
        count = min(size, len(ids) - start)
        index = np.resize(np.arange(start, start + count), size)
        rows = parallel.place((ids[index], positions[index], offsets[index]), split)
        states = _offset_states(
            params["text_encoder"], free, *rows, text=pipeline.text, block=block
        )
        chosen = [seeds[i] for i in index.tolist()]
        noise = seeded_noise(pipeline.latent_size, chosen, 1 + sampler.fresh)
        images = draw(
            {part: params[part] for part in ("unet", "vae")},
            states,
            parallel.place(noise, split),
            jnp.float32(guidance),
            unet=pipeline.unet,
            vae=pipeline.vae,
            sampler=sampler,
            mesh=mesh,
        )
        yield parallel.fetch(images)[:count]


@functools.partial(jax.jit, static_argnames=("text", "block"))
def _offset_states(
    params: Params,
    free: Float[Array, "negative token dim"],
    ids: Int[Array, "image token"],
    positions: Int[Array, " image"],
    offsets: Float[Array, "image dim"],
    *,
    text: ClipTextModel,
    block: int,
) -> Float[Array, "image text token dim"]:
    """What `generation.draw` reads: states of the negative prompt, if any, and the edited ones."""
    output = cast(
        TextOutput,
        text.apply({"params": params}, ids, delta=offsets, position=positions, block=block),
    )
    edited = output.last_hidden_state.astype(jnp.float32)[:, None]
    negative = jnp.broadcast_to(free, (len(ids), *free.shape))
    return jnp.concatenate([negative, edited], axis=1)
