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

from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.pipelines.generate import batches_of_states, encode_prompts
from emcid_jax.pipelines.pipeline import Params, Pipeline
from emcid_jax.runtime import parallel


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
    encoder = parallel.place(pipeline.params["text_encoder"], everywhere)
    negatives = 1 if guidance != 1.0 else 0
    free = parallel.place(encode_prompts(pipeline, [""]).tokens[:negatives], everywhere)

    def states(index: Int[np.ndarray, " image"]) -> Conditioning:
        rows = parallel.place((ids[index], positions[index], offsets[index]), split)
        text = pipeline.encoder.model
        return Conditioning(_offset_states(encoder, free, *rows, text=text, block=block))

    yield from batches_of_states(
        pipeline,
        states,
        seeds,
        sampler=sampler,
        guidance=guidance,
        params=pipeline.params,
        batch=batch,
        mesh=mesh,
    )


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
    """What `generate.draw` reads: states of the negative prompt, if any, and the edited ones."""
    output = cast(
        TextOutput,
        text.apply({"params": params}, ids, delta=offsets, position=positions, block=block),
    )
    edited = output.last_hidden_state.astype(jnp.float32)[:, None]
    negative = jnp.broadcast_to(free, (len(ids), *free.shape))
    return jnp.concatenate([negative, edited], axis=1)
