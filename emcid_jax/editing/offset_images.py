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
    empty = encode_prompts(pipeline, [""])[0]
    size = parallel.padded_size(min(batch, len(ids)), mesh.size)
    for start in range(0, len(ids), size):
        count = min(size, len(ids) - start)
        index = np.resize(np.arange(start, start + count), size)
        rows = parallel.place((ids[index], positions[index], offsets[index]), split)
        states = _offset_states(params["text_encoder"], *rows, text=pipeline.text, block=block)
        text = states[:, None]
        if guidance != 1.0:
            free = jnp.broadcast_to(jnp.asarray(empty), states.shape)
            text = jnp.stack([free, states], axis=1)
        chosen = [seeds[i] for i in index.tolist()]
        noise = seeded_noise(pipeline.latent_size, chosen, 1 + sampler.fresh)
        images = draw(
            {part: params[part] for part in ("unet", "vae")},
            *parallel.place((text, noise), split),
            jnp.float32(guidance),
            unet=pipeline.unet,
            vae=pipeline.vae,
            sampler=sampler,
            mesh=mesh,
        )
        yield parallel.fetch(images)[:count]


@functools.partial(jax.jit, static_argnames=("text", "block"))
def _offset_states(
    params: Params, ids: Array, positions: Array, offsets: Array, *, text: ClipTextModel, block: int
) -> Float[Array, "image token dim"]:
    """Text states after the final norm, as `generation.encode_prompts` gives them."""
    output = cast(
        TextOutput,
        text.apply({"params": params}, ids, delta=offsets, position=positions, block=block),
    )
    return output.last_hidden_state.astype(jnp.float32)
