"""Programs from shapes alone: the same that editing runs."""

from __future__ import annotations

import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import Objective, StageOneConfig
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.text.clip import end_positions
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines import generate as generation
from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.planning import traced_programs
from emcid_jax.runtime import parallel

REQUESTS = [
    EditRequest("a dog", "a cat", ("a photo of {}", "{}"), seed=3),
    EditRequest("the city", "the beach", ("a picture of {}", "{}"), seed=3),
]


@pytest.mark.parametrize(
    ("objective", "tokens", "count"),
    [*((name, 0, 1) for name in typing.get_args(Objective)), ("esd", 20, 3), ("text-only", 0, 2)],
)
def test_stage_one_reads_these_shapes(
    objective: Objective, tokens: int, count: int, tiny_pipeline_folder: Path
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    config = StageOneConfig(
        layer=2,
        samples_per_prompt=2,
        objective=objective,
        text_tokens=tokens,
        edited_tokens=count,
    )
    source = source_prompts(pipeline.encoder.tokenizer, REQUESTS)
    destination = destination_prompts(pipeline.encoder.tokenizer, REQUESTS)
    images = None if objective == "text-only" else np.zeros((2, 2, 2, 16, 16, 3), np.float32)
    real = preparation.prepare(pipeline, source, destination, [1, 2], images, config)
    got = traced_programs.stage_one_inputs(abstract_pipeline(tiny_pipeline_folder), 2, 2, config)
    found, wanted = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) for x in (got, real))
    assert found == wanted


def test_the_sampling_program_draws(tiny_pipeline_folder: Path) -> None:
    """Compiled from shapes, given what `generate` gives: the same images."""
    pipeline = load_pipeline(tiny_pipeline_folder)
    mesh = parallel.make_mesh(jax.devices()[:2])
    traced = traced_programs.trace_sampling(
        abstract_pipeline(tiny_pipeline_folder), 2, 3, 4.0, mesh
    )
    program = traced.lower().compile()
    states = generation.encode_prompts(pipeline, ["", "a dog"]).tokens
    text = Conditioning(np.stack([states, states]))
    noise = generation.initial_noise(pipeline, [5, 6])[:, None]
    params = {name: pipeline.params[name] for name in ("unet", "vae")}
    params = jax.device_put(params, parallel.replicated(mesh))
    text, noise = jax.device_put((text, noise), parallel.sharded(mesh))
    guidance = jax.device_put(jnp.float32(4), parallel.replicated(mesh))
    got, finite = program(params, text, noise, guidance)
    assert all(np.asarray(part).all() for part in finite)
    wanted = generation.generate(pipeline, ["a dog"] * 2, [5, 6], steps=3, guidance=4.0)
    assert np.abs(np.asarray(got).astype(int) - wanted).max() <= 1
    assert wanted.std() > 1


def test_the_moments_program_adds(tiny_pipeline_folder: Path) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    mesh = parallel.make_mesh(jax.devices()[:2])
    traced = traced_programs.trace_moments(
        abstract_pipeline(tiny_pipeline_folder).encoder, (0, 2), 3, mesh
    )
    program = traced.lower().compile()
    ids = tokenize(
        pipeline.encoder.tokenizer, ["a dog", "a photo of a cat in the snow", "the city", ""]
    )
    lengths = (
        np.asarray(end_positions(jnp.asarray(ids), pipeline.encoder.tokenizer.eos_token_id)) + 1
    )
    lengths[3] = 0  # padding, of which no token counts
    counts = (np.arange(32) < lengths[:, None]).astype(np.int32).ravel()
    places = np.tile(np.arange(64, dtype=np.int32), 2)  # every token of a device's two captions
    zeros = tuple(np.zeros((2, 64, 64), np.float32) for _ in range(2))
    params = jax.device_put(pipeline.params["text_encoder"], parallel.replicated(mesh))
    arrays = jax.device_put((zeros, ids, places, counts), parallel.sharded(mesh))
    got = program(params, *arrays)
    last = None
    for progress in second_moment.accumulate(
        pipeline.encoder.model, pipeline.params["text_encoder"], ids[:3], (0, 2), mesh=mesh
    ):
        last = progress
    assert last is not None
    ends = np.asarray(
        second_moment.end_positions(jnp.asarray(ids), pipeline.encoder.tokenizer.eos_token_id)
    )
    np.testing.assert_array_equal(ends[:3] + 1, lengths[:3])
    for sums, layer in zip(got, (0, 2), strict=True):
        upper = np.triu(np.asarray(sums).sum(0))
        np.testing.assert_allclose(upper, np.triu(last.sums[layer]), rtol=1e-5, atol=1e-4)
