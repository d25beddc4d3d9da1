"""What Stage I's loop reads, computed once per concept (docs/stage_one.md)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int

from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import Site, last_block, sites
from emcid_jax.editing.stage_one import edited_tokens, loss, prompt_end
from emcid_jax.editing.stage_one.loss import EncoderInputs, Params, StageOneInputs
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.image.vae import AutoencoderKL
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.families import Family
from emcid_jax.pipelines.pipeline import Pipeline
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
        images: training images in [-1, 1], see `training_images`; None where the objective
            needs none.
        config: settings.
        mesh: devices that share the work; default: the first one.
        behind: at least so many tokens from the subject's last one on are kept where only ends of
            prompts run, that all chunks of a list have one shape; see `tokens_behind`.

    Raises:
        UserError: a layer is not one of the model's blocks, or what is computed is not finite.
    """
    mesh = parallel.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    encoding = _encoding(pipeline, config, mesh)
    end, edited = pipeline.encoder.tokenizer.eos_token_id, config.edited_tokens
    position = edited_tokens.positions(source, end, edited)
    clean = encoding.run(source, position, "source text states")
    empty = None
    if config.objective == "esd":
        ids = np.asarray(tokenize(pipeline.encoder.tokenizer, [""]))[None]
        ones = np.ones((1, 1), np.int32)
        nothing = PromptRectangle(ids, ones, ones > 0)
        free = encoding.run(
            nothing, edited_tokens.positions(nothing, end, edited), "empty text states"
        )
        shape = source.mask.shape
        targets = [np.broadcast_to(x, (*shape, x.shape[-1])) for x in free.features]
        empty = jax.tree.map(
            lambda x: np.broadcast_to(x[0], (len(source.ids), *x.shape[2:])), free.read
        )
        if pipeline.empty_is_zero:
            empty = jax.tree.map(np.zeros_like, empty)
        teacher = clean.read
    else:
        places = edited_tokens.positions(destination, end, edited)
        wanted = encoding.run(destination, places, "destination text states")
        targets, teacher = wanted.features, wanted.read
    rows: Any = zip(encoding.encoders, clean.hidden, targets, strict=True)
    inputs = {
        one.name: EncoderInputs(encoding.ids(one, source), hidden, target)
        for one, hidden, target in rows
    }
    ends = None
    where = sites(config, pipeline.texts)
    for site in where:
        if loss.runs_ends(config, site, pipeline.texts):
            ends = edited_tokens.positions(source, end, 2)[..., 1]
            length = max(behind, tokens_behind(source, end))
            own = inputs[site.encoder]
            inputs[site.encoder] = _with_ends(encoding, own, site, position, length)
    first: Any = {name: own.hidden[:, 0] for name, own in inputs.items()}
    h0 = [np.take_along_axis(first[site.encoder], position[:, 0, :, None], 1) for site in where]
    mean, std = None, None
    if loss.needs_images(config):
        assert images is not None
        mean, std = _latents(pipeline, images, mesh)
    arrays: dict[str, Any] = {
        "encoders": inputs,
        "position": position,
        "prompt_mask": source.mask.astype(np.float32),
        "h0": np.concatenate([states.reshape(len(states), -1) for states in h0], axis=1),
        "seeds": _seed_words(seeds),
        "teacher": None if config.objective in ("sampled-noise", "text-only") else teacher,
        "empty": empty,
        "latent_mean": mean,
        "latent_std": std,
        "ends": ends,
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


class _Encoded(NamedTuple):
    """What prompts become in the encoders that are run."""

    hidden: tuple[np.ndarray, ...]
    """Outputs of the sites' blocks."""
    features: tuple[np.ndarray, ...]
    read: Conditioning | None
    """What the UNet reads; None where it does not run."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Encoding:
    """The encoders that the loss reads, ready to run on prompts."""

    encoders: tuple[TextEncoder, ...]
    tokens: int | None
    """So many of a prompt are run; None: all."""
    models: Mapping[str, ClipTextModel]
    """In float32, see `loss.text_models`."""
    params: Mapping[str, Params]
    """On every device."""
    function: Callable[..., tuple[Any, ...]]
    mesh: Mesh

    def ids(self, one: TextEncoder, prompts: PromptRectangle) -> Any:
        """Token ids as this encoder reads them."""
        return one.repadded(prompts.ids)[:, :, : self.tokens]

    def run(self, prompts: PromptRectangle, places: np.ndarray, what: str) -> _Encoded:
        """States at `places`; `what` says in errors what they are."""
        ids = tuple(self.ids(one, prompts) for one in self.encoders)
        return _Encoded(*_per_prompt(self.function, (ids, places), self.mesh, what))


def _encoding(pipeline: Pipeline, config: StageOneConfig, mesh: Mesh) -> _Encoding:
    """Of all that the UNet reads, or, of the text loss alone, of the encoders that get offsets."""
    where = {site.encoder: site.layer for site in sites(config, pipeline.texts)}
    whole = loss.reads_all(config)
    encoders = tuple(one for one in pipeline.encoders if whole or one.name in where)
    models = loss.text_models(pipeline)
    # An encoder without a site is run from its last state that is read.
    layers = tuple(where.get(one.name, last_block(pipeline.texts, one.name)) for one in encoders)
    params = {one.name: parallel.place(one.params, parallel.replicated(mesh)) for one in encoders}
    function = functools.partial(
        _encode,
        tuple(models[name] for name in params),
        tuple(params.values()),
        layers,
        pipeline.family if whole else None,
    )
    return _Encoding(encoders, config.text_tokens or None, models, params, function, mesh)


@functools.partial(jax.jit, static_argnames=("texts", "layers", "family"))
def _encode(
    texts: tuple[ClipTextModel, ...],
    params: tuple[Params, ...],
    layers: tuple[int, ...],
    family: Family | None,
    ids: tuple[Array, ...],
    position: Array,
) -> tuple[tuple[Array, ...], tuple[Array, ...], Conditioning | None]:
    outputs: list[Any] = [
        text.apply({"params": own}, rows)
        for text, own, rows in zip(texts, params, ids, strict=True)
    ]
    hidden = tuple(out.hidden[layer] for out, layer in zip(outputs, layers, strict=True))
    features = tuple(loss.text_features(out, position) for out in outputs)
    found = (hidden, features, family.condition(outputs) if family else None)
    return jax.tree.map(lambda part: part.astype(jnp.float32), found)


def _with_ends(
    encoding: _Encoding,
    own: EncoderInputs,
    site: Site,
    position: Int[np.ndarray, "concept prompt edited"],
    length: int,
) -> EncoderInputs:
    """What the ends of prompts need, from the subject on and `length` tokens long."""
    text, params = encoding.models[site.encoder], encoding.params[site.encoder]
    before = functools.partial(_before, text, params, site.layer + 1)
    hidden: Any = own.hidden
    known = _per_prompt(before, (hidden,), encoding.mesh, "source keys and values")
    places = np.minimum(position[..., :1] + np.arange(length), hidden.shape[2] - 1)
    tails: Any = np.take_along_axis(hidden, places[..., None], 2)
    return own._replace(earlier=prompt_end.Before(*known), behind=tails)


def _latents(
    pipeline: Pipeline,
    images: Float[np.ndarray, "concept sample prompt height width 3"],
    mesh: Mesh,
) -> list[np.ndarray]:
    """Posterior mean and standard deviation, times the scaling factor."""
    flat = images.reshape(len(images), -1, *images.shape[3:])
    vae = parallel.place(pipeline.params["vae"], parallel.replicated(mesh))
    posterior = functools.partial(_posterior, pipeline.vae, vae)
    found: tuple[Any, ...] = _per_prompt(posterior, (flat,), mesh, "latents of training images")
    return [part.reshape(*images.shape[:3], *part.shape[2:]) for part in found]


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
    function: Callable[..., tuple[Any, ...]],
    arrays: Any,
    mesh: Mesh,
    what: str,
) -> tuple[Any, ...]:
    """`function` of the rows [concept, prompt, ...] of the tree `arrays`, in batches of one shape;
    a tree like its result."""
    concepts, prompts = jax.tree.leaves(arrays)[0].shape[:2]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
    count = concepts * prompts
    size = min(PREPARE_BATCH * mesh.size, parallel.padded_size(count, mesh.size))
    batches = []
    for first in range(0, count, size):
        index = np.minimum(np.arange(first, first + size), count - 1)
        chosen = jax.tree.map(lambda x, index=index: x[index], rows)
        batch = parallel.place(chosen, parallel.sharded(mesh))
        batches.append(parallel.fetch(function(*batch)))
    found = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)
    for part in jax.tree.leaves(found):
        require_finite(part.reshape(concepts, -1), what, "request")
    return jax.tree.map(lambda part: part.reshape(concepts, prompts, *part.shape[1:]), found)
