"""Second moments of 11 layers: one pass for all against one pass for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import workload
from benchmarks.released import second_moment as released
from benchmarks.results import Check, Row
from benchmarks.settings import Settings
from benchmarks.timing import take_turns
from emcid_jax.config import MomentConfig, StageTwoConfig
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.caption_batches import canonical, make_batches
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.models.text.clip import end_positions
from emcid_jax.pipelines.pipeline import Pipeline, tokenize


class Measured(NamedTuple):
    """The rows, and our moments for Stage II."""

    rows: list[Row]
    moments: SecondMoments


def measure(pipeline: Pipeline, pipe: Any, settings: Settings) -> Measured:
    """Time from captions to moments, tokenising included, and the forward work of both."""
    layers = StageTwoConfig().layers
    captions = workload.captions(settings.captions)

    def ours() -> SecondMoments:
        steps = second_moment.accumulate(
            pipeline.encoder.model,
            pipeline.params["text_encoder"],
            tokenize(pipeline.encoder.tokenizer, captions),
            layers,
            batch=MomentConfig().batch,
        )
        *_, last = steps
        return second_moment.finish(last)

    def theirs() -> released.Moments:
        return released.second_moments(pipe, captions, layers)

    ours()  # every caption width compiles here
    released.second_moments(pipe, captions[: released.GROUP], layers)
    baseline, timed = take_turns(settings.repeats, theirs, ours)
    expected: released.Moments = baseline.result
    found: SecondMoments = timed.result
    error = max(
        float(np.abs(found.moments[layer] - moment).max() / np.abs(moment).max())
        for layer, moment in expected.moments.items()
    )
    work = _padded_tokens(pipeline, captions) * (max(layers) + 1)
    check = Check("moments, largest relative difference", error, high=1e-4)
    return Measured(
        [
            Row(
                f"second moments, {len(layers)} layers, time",
                "s",
                baseline.seconds,
                timed.seconds,
                6.0,
                (check,),
            ),
            Row(
                f"second moments, {len(layers)} layers, work",
                "tokens x blocks",
                expected.block_tokens,
                work,
                6.0,
            ),
        ],
        found,
    )


def _padded_tokens(pipeline: Pipeline, captions: list[str]) -> int:
    """Tokens that our batches hold, padding and padded rows included."""
    ids = tokenize(pipeline.encoder.tokenizer, captions)
    config = pipeline.encoder.model.config
    lengths = np.asarray(end_positions(jnp.asarray(ids), config.eos_token_id)) + 1
    ids, lengths = canonical(ids, lengths, config.max_position_embeddings)
    return sum(batch.ids.size for batch in make_batches(ids, lengths, MomentConfig().batch, 1))
