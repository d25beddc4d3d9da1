"""What Stage I's loop reads, computed once per concept (docs/stage_one.md)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import edited_tokens, loss, prompt_end
from emcid_jax.editing.stage_one.loss import Params, StageOneInputs
from emcid_jax.models.image.vae import AutoencoderKL
from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.finite import require_finite

PREPARE_BATCH = 32
"""Prompts or images encoded together, per device."""


def prepare(
    pipeline: Pipeline,
    source: PromptRectangle,
    destination: PromptRectangle,
    seeds: Sequence[int],
    images: Float[np.ndarray, "concept sample prompt height width 3"] | None,
    config: StageOneConfig,
    mesh: Mesh | None = None,
    behind: int = 0,
) -> StageOneInputs:
    """Everything the loop reads; NumPy arrays, of which `optimise` moves a batch at a time.

    Args:
        pipeline: the clean model.
        source: the source prompts, see `concepts.spans.source_prompts`.
        destination: the destination prompts of the same requests (not read by `esd`).
        seeds: one per concept.
        images: training images in [-1, 1], see `training_images`; None for `text-only`.
        config: settings.
        mesh: devices that share the work; default: the first one.
        behind: at least so many tokens from the subject's last one on are kept where only ends of
            prompts run, that all chunks of a list have one shape; see `tokens_behind`.

    Raises:
        UserError: the layer is not one of the model's blocks, or what is computed is not finite.
    """
    blocks = pipeline.encoder.model.config.num_hidden_layers
    if not 0 <= config.layer < blocks:
        raise UserError(
            f"stage_one.layer={config.layer}: the text encoder has blocks 0 to {blocks - 1}"
        )
    mesh = parallel.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    tokens = config.text_tokens or None
    source_ids, destination_ids = (part.ids[:, :, :tokens] for part in (source, destination))
    everywhere = parallel.replicated(mesh)
    text = parallel.place(pipeline.params["text_encoder"], everywhere)
    encode = functools.partial(_encode, loss.text_model(pipeline), text, config.layer)

    end, edited = pipeline.encoder.tokenizer.eos_token_id, config.edited_tokens
    position = edited_tokens.positions(source, end, edited)
    hidden, source_last, _ = _per_prompt(encode, (source_ids, position), mesh, "source text states")
    empty_text = None
    if config.objective == "esd":
        empty = np.asarray(tokenize(pipeline.encoder.tokenizer, [""]))[None, :, :tokens]
        ends = np.ones((1, 1), np.int32)
        nothing = PromptRectangle(empty, ends, ends > 0)
        places = edited_tokens.positions(nothing, end, edited)
        _, empty_last, features = _per_prompt(encode, (empty, places), mesh, "empty text states")
        target_features = np.broadcast_to(features, (*source.mask.shape, features.shape[-1]))
        teacher_text = source_last
        empty_text = np.broadcast_to(empty_last[0], (len(hidden), *empty_last.shape[2:]))
    else:
        places = edited_tokens.positions(destination, end, edited)
        _, teacher_text, target_features = _per_prompt(
            encode, (destination_ids, places), mesh, "destination text states"
        )
    earlier, ends, tails = None, None, None
    if loss.runs_ends(config, blocks):
        before = functools.partial(_before, loss.text_model(pipeline), text, config.layer + 1)
        known: list[Any] = _per_prompt(before, (hidden,), mesh, "source keys and values")
        earlier = prompt_end.Before(*known)
        ends = edited_tokens.positions(source, end, 2)[..., 1]
        length = max(behind, tokens_behind(source, end))
        places = np.minimum(position[..., :1] + np.arange(length), hidden.shape[2] - 1)
        tails = np.take_along_axis(hidden, places[..., None], 2)
    latent_mean, latent_std = None, None
    if loss.needs_images(config):
        assert images is not None
        flat = images.reshape(len(images), -1, *images.shape[3:])
        vae = parallel.place(pipeline.params["vae"], everywhere)
        posterior = functools.partial(_posterior, pipeline.vae, vae)
        latent_mean, latent_std = (
            part.reshape(*images.shape[:3], *part.shape[2:])
            for part in _per_prompt(posterior, (flat,), mesh, "latents of training images")
        )
    reads_teacher = config.objective not in ("sampled-noise", "text-only")
    arrays: dict[str, Any] = {
        "source_ids": source_ids,
        "position": position,
        "prompt_mask": source.mask.astype(np.float32),
        "hidden": hidden,
        "h0": np.take_along_axis(hidden[:, 0], position[:, 0, :, None], 1).reshape(len(hidden), -1),
        "target_features": target_features,
        "seeds": _seed_words(seeds),
        "teacher_text": teacher_text if reads_teacher else None,
        "empty_text": empty_text,
        "latent_mean": latent_mean,
        "latent_std": latent_std,
        "earlier": earlier,
        "ends": ends,
        "behind": tails,
    }
    return StageOneInputs(**arrays)


def tokens_behind(prompts: PromptRectangle, end: int) -> int:
    """Most tokens from a subject's last one to the end token, both counted; `end` is its id."""
    places = edited_tokens.positions(prompts, end, 2)
    return int((places[..., 1] - places[..., 0]).max()) + 1


def check_lengths(
    prompts: PromptRectangle, origins: Sequence[str], end: int, config: StageOneConfig
) -> None:
    """Raises one `UserError` naming all requests with prompts that do not fit.

    `text_tokens` would cut them, or there is no room behind them for all edited tokens. `origins`
    says where the requests stand, `end` is the id of the end token.
    """
    tokens = config.text_tokens or prompts.ids.shape[-1]
    lengths = edited_tokens.last_read(prompts, end, config.edited_tokens).max(axis=-1) + 1
    padding = ", edited padding included" if config.edited_tokens > 2 else ""
    limit, fix = (
        (f"stage_one.text_tokens is {tokens}", "give {} or more, or 0 for all")
        if config.text_tokens
        else (f"the model reads {tokens}", "shorten it or lower stage_one.edited_tokens")
    )
    if problems := [
        f"{origin}: a prompt has {length} tokens{padding}, {limit}; {fix.format(length)}"
        for origin, length in zip(origins, lengths.tolist(), strict=True)
        if length > tokens
    ]:
        raise UserError("\n".join(problems))


def _seed_words(seeds: Sequence[int]) -> np.ndarray:
    """Seeds modulo 2^64 as pairs of 32-bit words, high word first."""
    whole = np.array([seed % 2**64 for seed in seeds], np.uint64)
    return np.stack([whole >> np.uint64(32), whole & np.uint64(2**32 - 1)], -1).astype(np.uint32)


@functools.partial(jax.jit, static_argnames=("text", "layer"))
def _encode(
    text: ClipTextModel, params: Params, layer: int, ids: Array, position: Array
) -> tuple[Array, Array, Array]:
    out = cast(TextOutput, text.apply({"params": params}, ids))
    parts = (out.hidden[layer], out.last_hidden_state, loss.text_features(out, position))
    return jax.tree.map(lambda part: part.astype(jnp.float32), parts)


@functools.partial(jax.jit, static_argnames=("text", "start"))
def _before(text: ClipTextModel, params: Params, start: int, hidden: Array) -> tuple[Array, Array]:
    found = prompt_end.before(text, params, hidden, start)
    return found.keys, found.values


@functools.partial(jax.jit, static_argnames="vae")
def _posterior(vae: AutoencoderKL, params: Params, images: Array) -> tuple[Array, Array]:
    mean, std = cast(
        tuple[Array, Array], vae.apply({"params": params}, images, method=AutoencoderKL.encode)
    )
    return mean * vae.config.scaling_factor, std * vae.config.scaling_factor


def _per_prompt(
    function: Callable[..., tuple[Array, ...]],
    arrays: tuple[np.ndarray, ...],
    mesh: Mesh,
    what: str,
) -> list[np.ndarray]:
    """`function` of the rows [concept, prompt, ...] of `arrays`, in batches of one shape."""
    concepts, prompts = arrays[0].shape[:2]
    rows, count = [x.reshape(-1, *x.shape[2:]) for x in arrays], concepts * prompts
    size = min(PREPARE_BATCH * mesh.size, parallel.padded_size(count, mesh.size))
    batches = []
    for first in range(0, count, size):
        index = np.minimum(np.arange(first, first + size), count - 1)
        batch = parallel.place(tuple(x[index] for x in rows), parallel.sharded(mesh))
        batches.append(parallel.fetch(function(*batch)))
    parts = [np.concatenate(part)[:count] for part in zip(*batches, strict=True)]
    for part in parts:
        require_finite(part.reshape(concepts, -1), what, "request")
    return [part.reshape(concepts, prompts, *part.shape[1:]) for part in parts]
