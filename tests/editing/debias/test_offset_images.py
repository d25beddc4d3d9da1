"""Offsets tried out: none draws what `generate` draws, one goes through the blocks above it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.debias import offset_images
from emcid_jax.models.text.clip import TextOutput
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.runtime.parallel import make_mesh

PROMPTS = ["a photo of a dog", "a nurse", "a dog"]
SEEDS = [3, 4, 5]
BLOCK = 2


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_no_offset_draws_what_generate_draws(pipeline: Pipeline, guidance: float) -> None:
    ids = np.asarray(tokenize(pipeline.encoder.tokenizer, PROMPTS))
    width = pipeline.encoder.model.config.hidden_size
    mesh = make_mesh()
    common = {"steps": 2, "guidance": guidance, "batch": 2, "mesh": mesh}
    found = offset_images.offset_batches(
        pipeline,
        ids,
        np.array([2, 1, 1]),
        np.zeros((3, width), np.float32),
        SEEDS,
        block=BLOCK,
        **common,
    )
    wanted = generate(pipeline, PROMPTS, SEEDS, **common)
    difference = np.concatenate(list(found)).astype(int) - wanted
    assert np.abs(difference).max() <= 1  # Bytes: a rounding error may cross a half.


def test_an_offset_goes_through_the_blocks_above_it(pipeline: Pipeline) -> None:
    ids = jnp.asarray(tokenize(pipeline.encoder.tokenizer, PROMPTS))
    positions = np.array([2, 1, 1])
    offsets = np.random.default_rng(0).normal(size=(3, pipeline.encoder.model.config.hidden_size))
    text = {"params": pipeline.params["text_encoder"]}
    free = jnp.full((1, *ids.shape[1:], offsets.shape[1]), 7.0)
    found = offset_images._offset_states(
        text["params"], free, ids, jnp.asarray(positions), jnp.float32(offsets),
        text=pipeline.encoder.model, block=BLOCK,
    )  # fmt: skip
    clean = cast(TextOutput, pipeline.encoder.model.apply(text, ids))
    hidden = np.array(clean.hidden[BLOCK])
    hidden[np.arange(3), positions] += offsets
    wanted = pipeline.encoder.model.apply(text, ids, hidden=jnp.asarray(hidden), start=BLOCK + 1)
    states = cast(TextOutput, wanted).last_hidden_state
    np.testing.assert_array_equal(found[:, 0], np.full_like(states, 7.0))
    np.testing.assert_allclose(found[:, 1], states, atol=1e-5)
    assert np.abs(states - clean.last_hidden_state).max() > 0.1
