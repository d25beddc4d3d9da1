"""Stage I's loss at given latents, noise and timesteps (docs/method.md).

An offset `delta` at the edited tokens of the *source* prompts is good when the UNet, reading
the edited source text, predicts what a teacher predicts (dual self-distillation), and when the
text features match those of the destination. Everything here is a pure function of its
arguments; `random_draws` draws the noise, `adam_loop` takes the steps.

Concepts and prompts are folded into one batch axis for the models (docs/stage_one.md),
and losses are kept per concept: their sum has, for each concept, exactly that concept's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, UInt32

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import Site, by_site, last_block, sites
from emcid_jax.editing.stage_one import attention, prompt_end
from emcid_jax.editing.stage_one.attention import Wanted
from emcid_jax.editing.stage_one.prompt_by_prompt import prompt_by_prompt
from emcid_jax.editing.stage_one.prompt_end import Before
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.text.clip import ClipTextModel, TextOutput
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.generate import time_ids
from emcid_jax.pipelines.pipeline import Pipeline

Params = Mapping[str, Any]

LEAST = 1e-6
"""Of an attention layer's answers, the share that counts as the least distance between texts."""


class EncoderInputs(NamedTuple):
    """What the loop reads of one text encoder; every leaf has a leading concept axis."""

    source_ids: Int[Array, "concept prompt token"]
    """Token ids of the source prompts, padded to the tokenizer's maximum length, of which the first
    `text_tokens` are left."""
    hidden: Float[Array, "concept prompt token dim"]
    """Clean source states: outputs of block L."""
    target_features: Float[Array, "concept prompt size"]
    """`text_features` of the destination prompts (`esd`: of the empty prompt)."""
    earlier: Before | None = None
    """What the tokens before the subject's last one are to those behind; leaves [concept, prompt,
    block, token, dim]. With it only the ends of prompts run, see `runs_ends`."""
    behind: Float[Array, "concept prompt tail dim"] | None = None
    """`hidden` from the subject's last token on, as far as any prompt's end token."""


class StageOneInputs(NamedTuple):
    """All that the loop reads, computed once per concept; every leaf has a leading concept axis.

    `prompt` pads to the longest request; `prompt_mask` is 1 for real prompts, 0 for padding.
    `None` marks what the objective does not need.
    """

    encoders: Mapping[str, EncoderInputs]
    """By encoder: those of all sites, and, where images are read, of all that the UNet reads."""
    position: Int[Array, "concept prompt edited"]
    """Edited tokens of each source prompt, the last subject token first."""
    prompt_mask: Float[Array, "concept prompt"]
    h0: Float[Array, "concept size"]
    """`hidden` at all sites and there at the edited tokens of prompt 0, one after the other."""
    seeds: UInt32[Array, "concept 2"]
    """The request's own seed as two 32-bit words: all randomness of the concept comes from it."""
    teacher: Conditioning | None = None
    """What the teacher reads, axes (concept, prompt): destination prompts; for `esd` the clean
    source prompts."""
    empty: Conditioning | None = None
    """What guidance leads away from, axis concept, for `esd`."""
    latent_mean: Float[Array, "concept sample prompt height width channel"] | None = None
    """Posterior mean of the training images' latents, times the scaling factor."""
    latent_std: Float[Array, "concept sample prompt height width channel"] | None = None
    """Posterior standard deviation, same units."""
    ends: Int[Array, "concept prompt"] | None = None
    """The end token of each source prompt, where only ends run."""


class Draw(NamedTuple):
    """The random part of a sample, per concept and prompt."""

    latents: Float[Array, "concept prompt height width channel"]
    """Clean latents, times the scaling factor."""
    noise: Float[Array, "concept prompt height width channel"]
    timesteps: Int[Array, "concept prompt"]


class Sample(NamedTuple):
    """What the loss is evaluated on: noisy latents and what the student should predict on them.

    Rows are folded: leading axis `concept * prompt`.
    """

    noisy: Float[Array, "row height width channel"]
    timesteps: Int[Array, " row"]
    target: Float[Array, "row height width channel"]
    """In the model's own prediction space (noise or velocity), float32."""


class Losses(NamedTuple):
    """The parts of the loss, per concept, in float32."""

    total: Float[Array, " concept"]
    """noise + text_loss_scale * text + decay."""
    noise: Float[Array, " concept"]
    """The noise loss, or the attention loss in its place."""
    text: Float[Array, " concept"]
    """Before scaling by `text_loss_scale`."""
    decay: Float[Array, " concept"]


def needs_images(config: StageOneConfig) -> bool:
    """Whether the objective has a noise loss, and with it UNet, latents and training images."""
    return config.objective not in ("text-only", "attention")


def reads_all(config: StageOneConfig) -> bool:
    """Whether the loss reads the texts as the UNet does: every token of all encoders."""
    return config.objective != "text-only"


def runs_ends(config: StageOneConfig, site: Site, texts: Mapping[str, ClipTextModel]) -> bool:
    """Whether only the ends of prompts run, from the subject on.

    The loss reads the end token alone, and several of the text encoder's blocks lie above the site.
    The result is the same up to rounding, several times as fast.
    """
    one = not reads_all(config) and config.edited_tokens == 1
    return one and site.layer < texts[site.encoder].config.num_hidden_layers - 2


def aligned(config: StageOneConfig, where: Sequence[Site]) -> tuple[str, ...]:
    """The encoders whose features the text loss compares."""
    names = [site.encoder for site in where]
    return tuple(n for n in names if n == FIRST or len(names) == 1 or config.pooled_text_loss)


def text_models(pipeline: Pipeline) -> dict[str, ClipTextModel]:
    """The text encoders in float32, whatever the pipeline computes in.

    They are a small part of the work, and a memory is a state that Stage II must reproduce.
    """
    return {name: model.clone(dtype=jnp.float32) for name, model in pipeline.texts.items()}


def student_texts(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept size"],
    config: StageOneConfig,
) -> dict[str, TextOutput]:
    """Text states of the source prompts with `delta` added at its sites.

    Only the blocks above them run. Rows are folded: leading axis `concept * prompt`. Encoders of
    which only ends run are left out.
    """
    where = sites(config, pipeline.texts)
    offsets = by_site(delta, where)
    layers = {site.encoder: site.layer for site in where}
    found = {}
    for name, text in text_models(pipeline).items():
        own = inputs.encoders.get(name)
        if own is None or own.earlier is not None:
            continue
        hidden, layer = own.hidden, layers.get(name, last_block(pipeline.texts, name))
        if name in offsets:
            # A product with 0 and 1 instead of a scatter: elementwise, so it shards without
            # collectives.
            here = _marks(inputs.position, hidden.shape[2])
            added = here[..., None] * offsets[name][:, None, :, None]
            hidden = hidden + added.sum(axis=2)
        edited = _fold(hidden)
        output: Any = text.apply(
            {"params": params[name]}, _fold(own.source_ids), hidden=edited, start=layer + 1
        )
        states = (*output.hidden[:layer], edited, *output.hidden[layer + 1 :])
        found[name] = output._replace(hidden=states)
    return found


def text_features(
    output: TextOutput, position: Int[Array, "row edited"]
) -> Float[Array, "row size"]:
    """What the text loss compares, float32: the pooled features, projected where the encoder does
    so, or, with several edited tokens, their final states."""
    if position.shape[1] == 1:
        pooled = output.pooled if output.projected is None else output.projected
        return pooled.astype(jnp.float32)
    states = output.last_hidden_state.astype(jnp.float32)
    here = _marks(position, states.shape[1])
    found = jnp.einsum("ret,rtd->red", here, states, precision="highest")
    return found.reshape(len(states), -1)


def make_sample(
    pipeline: Pipeline, params: Params, inputs: StageOneInputs, draw: Draw, config: StageOneConfig
) -> Sample:
    """A draw with its noise added and the teacher's prediction.

    The target of `ablate-dest` and `ablate-source` is the clean model's prediction on
    `teacher`; of `sampled-noise` the noise that was drawn, or its velocity; of `esd`
    eps(empty) - mu (eps(source) - eps(empty)).
    """
    latents, noise, timesteps = map(_fold, draw)
    noisy = pipeline.schedule.add_noise(latents, noise, timesteps)
    if config.objective == "sampled-noise":
        target = pipeline.schedule.training_target(latents, noise, timesteps)
        return Sample(noisy, timesteps, target)
    assert inputs.teacher is not None
    target = predict(pipeline, params, noisy, timesteps, jax.tree.map(_fold, inputs.teacher))
    if config.objective == "esd":
        assert inputs.empty is not None
        prompts = inputs.position.shape[1]
        empty = jax.tree.map(lambda part: jnp.repeat(part, prompts, axis=0), inputs.empty)
        free = predict(pipeline, params, noisy, timesteps, empty)
        target = free - config.esd_guidance * (target - free)
    return Sample(noisy, timesteps, target)


def loss(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept size"],
    sample: Sample | Wanted | None,
    config: StageOneConfig,
    one_by_one: bool = False,
) -> Losses:
    """Stage I's loss per concept on a given sample (`None` only for `text-only`).

    noise: mean over prompts and pixels of (student - target)^2; of `attention` the mean over layers
    of |answers - wanted|^2 / |clean answers - wanted|^2, which is 1 at delta = 0. text: mean over
    prompts and features of (features(edited source) - features(destination))^2, summed over the
    encoders that are `aligned`. decay: weight_decay |delta| / |h0|^2, summed over sites and edited
    tokens, with gradient 0 at delta = 0.

    With `one_by_one` the UNet takes a concept's prompts one after another, see `prompt_by_prompt`.
    """
    where = sites(config, pipeline.texts)
    students = student_texts(pipeline, params, inputs, delta, config)
    text = jnp.zeros(len(delta))
    for name in aligned(config, where):
        own = inputs.encoders[name]
        if own.earlier is None:
            features = text_features(students[name], _fold(inputs.position))
        else:
            features = _end_features(pipeline, params, inputs, delta, config, name)
        error = jnp.square(features - _fold(own.target_features))
        text = text + prompt_mean(error, inputs.prompt_mask)
    noise = jnp.zeros_like(text)
    if isinstance(sample, Wanted):
        read = pipeline.condition(students)
        cut = _cut(pipeline, read.tokens)
        apart = attention.distances(params["attention"], read.tokens, sample.answers, cut)
        noise = (_layer_means(apart, inputs.prompt_mask) / sample.distance).mean(axis=0)
    elif sample is not None:
        read = pipeline.condition(students)

        def squared(read: Conditioning, sample: Sample) -> Array:
            predicted = predict(pipeline, params, sample.noisy, sample.timesteps, read)
            return jnp.square(predicted - sample.target)

        def means(read: Conditioning, sample: Sample) -> Array:
            return squared(read, sample).mean(axis=(1, 2, 3))

        if one_by_one:
            errors = prompt_by_prompt(means, read, sample, inputs.prompt_mask.shape[1])
        else:
            errors = squared(read, sample)
        noise = prompt_mean(errors, inputs.prompt_mask)
    # optax.safe_norm: the gradient of |delta| at 0 is 0, where jnp.linalg.norm has NaN.
    decay = jnp.zeros_like(text)
    states = by_site(inputs.h0, where)
    for name, offsets in by_site(delta, where).items():
        squares = jnp.sum(jnp.square(states[name]), axis=-1)
        decay = decay + (optax.safe_norm(offsets, 0.0, axis=-1) / squares).sum(axis=-1)
    decay = config.weight_decay * decay
    return Losses(noise + config.text_loss_scale * text + decay, noise, text, decay)


def loss_and_gradient(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept size"],
    sample: Sample | Wanted | None,
    config: StageOneConfig,
    one_by_one: bool = False,
) -> tuple[Losses, Float[Array, "concept size"]]:
    """The loss and, for each concept, the gradient of its own total with respect to its `delta`."""

    def summed(offset: Array) -> tuple[Array, Losses]:
        parts = loss(pipeline, params, inputs, offset, sample, config, one_by_one)
        return parts.total.sum(), parts

    gradient, parts = jax.grad(summed, has_aux=True)(delta)
    return parts, gradient


def wanted(
    pipeline: Pipeline, params: Params, inputs: StageOneInputs, config: StageOneConfig
) -> Wanted:
    """What the attention loss compares with; `params` has the UNet's `attention.layers`."""
    assert inputs.teacher is not None
    goals, cut = _fold(inputs.teacher.tokens), _cut(pipeline, inputs.teacher.tokens)
    answers = tuple(attention.answers(layer, goals, cut) for layer in params["attention"])
    nothing = jnp.zeros_like(inputs.h0)
    clean = student_texts(pipeline, params, inputs, nothing, config)
    states = pipeline.condition(clean).tokens
    apart = attention.distances(params["attention"], states, answers, cut)
    sizes = jnp.stack([jnp.square(answer).mean(axis=(1, 2)) for answer in answers])
    least = LEAST * _layer_means(sizes, inputs.prompt_mask)
    return Wanted(answers, jnp.maximum(_layer_means(apart, inputs.prompt_mask), least))


def predict(
    pipeline: Pipeline,
    params: Params,
    noisy: Float[Array, "row height width channel"],
    timesteps: Int[Array, " row"],
    text: Conditioning,
) -> Float[Array, "row height width channel"]:
    """What the UNet with `params` predicts on noisy latents, reading `text`; float32.

    Models with size conditioning are told the sizes of their own pictures.
    """
    sizes = time_ids(pipeline, len(noisy))
    read = text._replace(time_ids=None if sizes is None else jnp.asarray(sizes))
    predicted = pipeline.unet.apply({"params": params["unet"]}, noisy, timesteps, *read)
    return cast(Array, predicted).astype(jnp.float32)


def _end_features(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    delta: Float[Array, "concept size"],
    config: StageOneConfig,
    name: str,
) -> Float[Array, "row feature"]:
    """`text_features` of the source prompts with `delta`, from the ends of the prompts alone."""
    own, where = inputs.encoders[name], sites(config, pipeline.texts)
    assert own.behind is not None
    assert own.earlier is not None
    assert inputs.ends is not None
    offset = by_site(delta, where)[name][:, 0]
    here = _marks(jnp.zeros((), jnp.int32), own.behind.shape[2])
    edited = own.behind + here[:, None] * offset[:, None, None]
    (layer,) = (site.layer for site in where if site.encoder == name)
    return prompt_end.end_features(
        text_models(pipeline)[name],
        params[name],
        Before(*map(_fold, own.earlier)),
        _fold(edited),
        _fold(inputs.position[..., 0]),
        _fold(inputs.ends),
        layer + 1,
    )


def prompt_mean(
    values: Float[Array, "row ..."], mask: Float[Array, "concept prompt"]
) -> Float[Array, " concept"]:
    """Mean over everything but the concept axis, of real prompts only; rows are folded."""
    per_prompt = values.reshape((*mask.shape, -1)).mean(axis=-1)
    return (per_prompt * mask).sum(axis=-1) / mask.sum(axis=-1)


def _layer_means(
    rows: Float[Array, "layer row"], mask: Float[Array, "concept prompt"]
) -> Float[Array, "layer concept"]:
    """`prompt_mean` of every layer."""
    return jnp.stack([prompt_mean(layer, mask) for layer in rows])


def _marks(position: Int[Array, "*rows"], tokens: int) -> Float[Array, "*rows token"]:
    """1 where a position is, else 0."""
    return (jnp.arange(tokens) == position[..., None]).astype(jnp.float32)


def _cut(pipeline: Pipeline, states: Float[Array, "*row token dim"]) -> int:
    """Tokens of padding that pictures are drawn with and `states` lack."""
    return pipeline.encoder.tokenizer.model_max_length - states.shape[-2]


def _fold(array: Array) -> Array:
    """Concept and prompt axes as one batch axis."""
    return array.reshape((-1, *array.shape[2:]))
