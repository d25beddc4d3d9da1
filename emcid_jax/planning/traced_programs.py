"""The shapes of what editing computes on, for programs that are compiled but not run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emcid_jax.config import StageOneConfig
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.stage_one import loss
from emcid_jax.editing.stage_one.loss import EncoderInputs, StageOneInputs
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.pipelines import generate
from emcid_jax.pipelines.pipeline import Pipeline, conditioning_shapes
from emcid_jax.runtime import parallel


def stage_one_inputs(
    pipeline: Pipeline, concepts: int, prompts: int, config: StageOneConfig
) -> StageOneInputs:
    """What `prepare.prepare` returns for `concepts` requests of `prompts` templates."""
    where = sites(config, pipeline.texts)
    tokens = config.text_tokens or pipeline.encoder.tokenizer.model_max_length
    edited, images = config.edited_tokens, loss.needs_images(config)
    whole = loss.reads_all(config)
    teacher = config.objective not in ("sampled-noise", "text-only")
    latents = (concepts, config.samples_per_prompt, prompts, *pipeline.latent_size)

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def read(*rows: int) -> Any:
        """What the UNet reads, without sizes and of `tokens` tokens."""
        whole = conditioning_shapes(pipeline, *rows)
        cut = shape(*rows, tokens, whole.tokens.shape[-1])
        return whole._replace(tokens=cut, time_ids=None)

    encoders = {}
    for name, model in pipeline.texts.items():
        if whole or name in [site.encoder for site in where]:
            dim = model.config.hidden_size
            feature = model.config.projection_dim if model.projection and edited == 1 else dim
            encoders[name] = EncoderInputs(
                source_ids=shape(concepts, prompts, tokens, dtype=jnp.int32),
                hidden=shape(concepts, prompts, tokens, dim),
                target_features=shape(concepts, prompts, edited * feature),
            )
    return StageOneInputs(
        encoders=encoders,
        position=shape(concepts, prompts, edited, dtype=jnp.int32),
        prompt_mask=shape(concepts, prompts),
        h0=shape(concepts, edited * sum(site.width for site in where)),
        seeds=shape(concepts, 2, dtype=jnp.uint32),
        teacher=read(concepts, prompts) if teacher else None,
        empty=read(concepts) if config.objective == "esd" else None,
        latent_mean=shape(*latents) if images else None,
        latent_std=shape(*latents) if images else None,
    )


def trace_moments(
    encoder: TextEncoder, layers: tuple[int, ...], captions: int, mesh: Mesh
) -> jax.stages.Traced:
    """One batch of second moments, as `second_moment.accumulate` adds it, at its largest.

    That is captions of full length of which no two begin alike. `captions` is rounded up to a
    multiple of the devices.
    """
    params = parallel.shapes(encoder.params, parallel.replicated(mesh))
    model = second_moment.exact(encoder.model, params)
    size, tokens = model.config.intermediate_size, encoder.tokenizer.model_max_length
    captions = parallel.padded_size(captions, mesh.size)

    def split(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=parallel.sharded(mesh))

    sums = tuple(split(mesh.size, size, size, dtype=jnp.float32) for _ in layers)
    ids, slots = split(captions, tokens), split(captions * tokens)
    return second_moment._add.trace(model, layers, mesh, params, sums, ids, slots, slots)


def trace_sampling(
    pipeline: Pipeline, images: int, steps: int, guidance: float, mesh: Mesh
) -> jax.stages.Traced:
    """The program that draws `images` images at once, as `generate.image_batches` calls it."""
    sampler = make_sampler(pipeline.scheduler_config, steps)
    params = {name: pipeline.params[name] for name in ("unet", "vae")}
    params = parallel.shapes(params, parallel.spread(params, mesh))
    prompts = 1 if guidance == 1.0 else 2
    text = conditioning_shapes(pipeline, images, prompts)

    def split(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=parallel.sharded(mesh))

    return generate.draw.trace(
        params,
        jax.tree.map(lambda leaf: split(*leaf.shape), text),
        split(images, 1 + sampler.fresh, *pipeline.latent_size),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=parallel.replicated(mesh)),
        unet=pipeline.unet,
        vae=pipeline.vae,
        sampler=sampler,
        mesh=mesh,
    )
