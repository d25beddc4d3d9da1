"""Fine-tuning baselines: Adam on weights, where EMCID finds memories and solves for the weights.

The loss is Stage I's (`editing/stage_one/loss.py`), over all requests and a batch of them per step,
without the decay of the offset, for there is none. With `part` = `text_encoder` that is the plain
alternative to both of EMCID's stages, in all text encoders that they edit; with `cross_attention`
and the objective `esd` it is ESD-x (Gandikota et al., arXiv 2303.07345), but for the noisy images:
ESD takes them from the trained model half way through sampling, this adds noise to the clean
model's images of the source.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array
from jaxtyping import Float

from emcid_jax.config import Count, Positive, StageOneConfig
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.stage_one import loss as objective
from emcid_jax.editing.stage_one import random_draws
from emcid_jax.editing.stage_one.loss import Params, Sample, StageOneInputs
from emcid_jax.models.text.clip import TextOutput
from emcid_jax.pipelines.pipeline import Pipeline

Part = Literal["text_encoder", "cross_attention"]
Weights = dict[tuple[str, ...], Array]


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """Settings of fine-tuning; the loss is that of `stage_one`."""

    part: Part = "text_encoder"
    """What is trained: the text encoders that Stage I edits, or the UNet's attention to text."""
    passes: Count = 60
    """How often every request is seen: what Stage I's steps are to a memory."""
    learning_rate: Positive = 1e-4
    """Constant Adam learning rate; 1e-4 is that of the released code's fine-tuning."""
    batch: Count = 8
    """Requests per step."""


class Progress(NamedTuple):
    """A step's outcome."""

    params: dict[str, Any]
    """The whole model's parameters, those that are not trained as they were."""
    loss: float


def train(
    pipeline: Pipeline,
    inputs: StageOneInputs,
    stage_one: StageOneConfig,
    config: FineTuneConfig,
) -> Iterator[Progress]:
    """Trains step by step; the last one's parameters are the result.

    Args:
        pipeline: the clean model; also the teacher.
        inputs: of all requests, see `prepare.prepare`.
        stage_one: the loss.
        config: settings.

    Every pass takes the requests in a new order, which is a function of their number only.
    """
    clean = {name: pipeline.params[name] for name in (*pipeline.texts, "unet")}
    encoders = [site.encoder for site in sites(stage_one, pipeline.texts)]
    weights = trained_weights(clean, config.part, encoders)
    optimiser = optax.adam(config.learning_rate)
    state = optimiser.init(weights)
    step = jax.jit(functools.partial(_step, pipeline, stage_one, optimiser), donate_argnums=(0, 1))
    weights = jax.tree.map(jnp.copy, weights)  # Donated; the clean ones stay the teacher's.
    for index, rows in enumerate(batches(len(inputs.h0), config)):
        batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], inputs)
        weights, state, loss = step(weights, state, clean, batch, np.int32(index))
        yield Progress(pipeline.params | merged(clean, weights), float(loss))


def batches(count: int, config: FineTuneConfig) -> Iterator[np.ndarray]:
    """Rows of each step: all requests `passes` times, in batches of one size."""
    rng = np.random.default_rng(0)
    size = min(config.batch, count)
    order = np.concatenate([rng.permutation(count) for _ in range(config.passes)])
    for first in range(0, len(order), size):
        yield np.resize(order[first : first + size], size)


def trained_weights(params: Params, part: Part, encoders: Sequence[str]) -> Weights:
    """The arrays that are trained, by path in the parameters of text encoders and UNet.

    `encoders` are trained if `part` is `text_encoder`.
    """
    flat: Any = traverse_util.flatten_dict({name: dict(params[name]) for name in params})
    if part == "text_encoder":
        return {path: leaf for path, leaf in flat.items() if path[0] in encoders}
    return {path: leaf for path, leaf in flat.items() if path[0] == "unet" and "attn2" in path}


def merged(params: Params, weights: Mapping[tuple[str, ...], Array]) -> dict[str, Any]:
    """The parameters with `weights` in their places; parts without any stay the same objects."""
    changed = {path[0] for path in weights}
    flat = traverse_util.flatten_dict({name: dict(params[name]) for name in changed})
    return {**params, **traverse_util.unflatten_dict(flat | dict(weights))}


def loss(
    pipeline: Pipeline,
    params: Params,
    inputs: StageOneInputs,
    sample: Sample | None,
    config: StageOneConfig,
) -> Float[Array, ""]:
    """Stage I's noise and text loss of the model with `params`, mean over the requests."""
    mask = inputs.prompt_mask
    position = inputs.position.reshape(-1, inputs.position.shape[-1])
    texts = objective.text_models(pipeline)
    students = {
        name: cast(
            TextOutput,
            texts[name].apply(
                {"params": params[name]}, own.source_ids.reshape(-1, own.source_ids.shape[-1])
            ),
        )
        for name, own in inputs.encoders.items()
    }
    total = jnp.zeros(())
    for name in objective.aligned(config, sites(config, pipeline.texts)):
        features = objective.text_features(students[name], position)
        error = jnp.square(features - inputs.encoders[name].target_features.reshape(features.shape))
        total += config.text_loss_scale * objective.prompt_mean(error, mask).mean()
    if sample is not None:
        read = pipeline.condition(students)
        predicted = objective.predict(pipeline, params, sample.noisy, sample.timesteps, read)
        total += objective.prompt_mean(jnp.square(predicted - sample.target), mask).mean()
    return total


def _step(
    pipeline: Pipeline,
    config: StageOneConfig,
    optimiser: optax.GradientTransformation,
    weights: Weights,
    state: optax.OptState,
    clean: Params,
    inputs: StageOneInputs,
    index: Array,
) -> tuple[Weights, optax.OptState, Array]:
    sample = None
    if objective.needs_images(config):
        keys = random_draws.fold_in(random_draws.training_keys(inputs), index)
        draw = random_draws.draw(pipeline, inputs, keys)
        sample = objective.make_sample(pipeline, clean, inputs, draw, config)

    def total(trained: Weights) -> Array:
        return loss(pipeline, merged(clean, trained), inputs, sample, config)

    value, gradient = jax.value_and_grad(total)(weights)
    updates, state = optimiser.update(gradient, state, weights)
    return cast(Weights, optax.apply_updates(weights, updates)), state, value
