"""Images drawn with offsets added to the text states: an edit tried out without writing it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.editing.encoder.sites import Site, by_site
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.pipelines.families import Family
from emcid_jax.pipelines.generate import batches_of_states, time_ids, unguided
from emcid_jax.pipelines.pipeline import Params, Pipeline
from emcid_jax.runtime import parallel


def offset_batches(
    pipeline: Pipeline,
    ids: Int[np.ndarray, "image token"],
    positions: Int[np.ndarray, " image"],
    offsets: Float[np.ndarray, "image size"],
    seeds: Sequence[int],
    *,
    where: Sequence[Site],
    steps: int,
    guidance: float,
    batch: int,
    mesh: Mesh,
) -> Iterator[UInt8[np.ndarray, "image height width 3"]]:
    """Draws one image per prompt, offset and seed, batch by batch and in order.

    Args:
        pipeline: the model.
        ids: token ids of the prompts.
        positions: the token that an offset is added to.
        offsets: one per image, of all sites.
        seeds: one per image.
        where: the sites that offsets are added at.
        steps: denoising steps.
        guidance: strength of classifier-free guidance against the empty prompt.
        batch: images per call, rounded up to a multiple of the devices.
        mesh: devices that share each batch.
    """
    sampler = make_sampler(pipeline.scheduler_config, steps)
    everywhere, split = parallel.replicated(mesh), parallel.sharded(mesh)
    encoders = pipeline.encoders
    params = parallel.place(tuple(one.params for one in encoders), everywhere)
    guided = guidance != 1.0
    free = parallel.place(unguided(pipeline, ""), everywhere) if guided else None
    own = [one.repadded(ids) for one in encoders]
    sizes = time_ids(pipeline, len(ids))

    def states(index: Int[np.ndarray, " image"]) -> Conditioning:
        rows = tuple(part[index] for part in own), positions[index], offsets[index]
        told = None if sizes is None else sizes[index]
        return _offset_states(
            params,
            free,
            *parallel.place((*rows, told), split),
            texts=tuple(pipeline.texts.values()),
            names=tuple(pipeline.texts),
            where=tuple(where),
            family=pipeline.family,
        )

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


@functools.partial(jax.jit, static_argnames=("texts", "names", "where", "family"))
def _offset_states(
    params: tuple[Params, ...],
    free: Conditioning | None,
    ids: tuple[Int[Array, "image token"], ...],
    positions: Int[Array, " image"],
    offsets: Float[Array, "image size"],
    sizes: Float[Array, "image id"] | None,
    *,
    texts: tuple[ClipTextModel, ...],
    names: tuple[str, ...],
    where: tuple[Site, ...],
    family: Family,
) -> Conditioning:
    """What `generate.draw` reads: states of the negative prompt, if any, and the edited ones."""
    split = by_site(offsets, where)
    layers = {site.encoder: site.layer for site in where}
    outputs: list[Any] = []
    for name, text, own, rows in zip(names, texts, params, ids, strict=True):
        edit: dict[str, Any] = {}
        if name in split:
            edit = {"delta": split[name][:, 0], "position": positions, "block": layers[name]}
        outputs.append(text.apply({"params": own}, rows, **edit))
    edited = family.condition(outputs)
    together = [edited] if free is None else [free, edited]

    def stacked(*parts: Array) -> Array:
        count = len(positions)
        return jnp.stack([jnp.broadcast_to(p, (count, *p.shape[1:])) for p in parts], axis=1)

    found = jax.tree.map(stacked, *together)
    if sizes is None:
        return found
    return found._replace(time_ids=stacked(*[sizes] * len(together)))
