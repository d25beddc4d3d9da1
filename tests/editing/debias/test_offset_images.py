"""Offsets tried out: none draws what `generate` draws, one goes through the blocks above it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.debias import offset_images
from emcid_jax.editing.encoder.sites import by_site, sites
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.generate import encode_prompts, generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.parallel import make_mesh

PROMPTS = ["a photo of a dog", "a nurse", "a dog"]
SEEDS = [3, 4, 5]
CONFIG = StageOneConfig(layer=2, second_layer=1)


@pytest.fixture(scope="module", params=["tiny_pipeline_folder", "tiny_xl_folder"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load_pipeline(request.getfixturevalue(request.param))


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_no_offset_draws_what_generate_draws(pipeline: Pipeline, guidance: float) -> None:
    ids = np.asarray(tokenize(pipeline.encoder.tokenizer, PROMPTS))
    where = sites(CONFIG, pipeline.texts)
    mesh = make_mesh()
    common = {"steps": 2, "guidance": guidance, "batch": 2, "mesh": mesh}
    found = offset_images.offset_batches(
        pipeline,
        ids,
        np.array([2, 1, 1]),
        np.zeros((3, sum(site.width for site in where)), np.float32),
        SEEDS,
        where=where,
        **common,
    )
    wanted = generate(pipeline, PROMPTS, SEEDS, **common)
    difference = np.concatenate(list(found)).astype(int) - wanted
    assert np.abs(difference).max() <= 1  # Bytes: a rounding error may cross a half.


def test_an_offset_goes_through_the_blocks_above_it(pipeline: Pipeline) -> None:
    where = sites(CONFIG, pipeline.texts)
    ids = np.asarray(tokenize(pipeline.encoder.tokenizer, PROMPTS))
    positions = np.array([2, 1, 1])
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(3, sum(site.width for site in where))).astype(np.float32)
    clean = encode_prompts(pipeline, PROMPTS)
    free = jax.tree.map(lambda part: np.full_like(part[:1], 7.0), clean)
    found = offset_images._offset_states(
        tuple(one.params for one in pipeline.encoders),
        free,
        tuple(jnp.asarray(one.repadded(ids)) for one in pipeline.encoders),
        jnp.asarray(positions),
        jnp.asarray(offsets),
        None,
        texts=tuple(pipeline.texts.values()),
        names=tuple(pipeline.texts),
        where=where,
        family=pipeline.family,
    )
    outputs = []
    for site, one in zip(where, pipeline.encoders, strict=True):
        rows, params = jnp.asarray(one.repadded(ids)), {"params": one.params}
        plain: Any = one.model.apply(params, rows)
        hidden = np.array(plain.hidden[site.layer])
        hidden[np.arange(3), positions] += by_site(offsets, where)[site.encoder][:, 0]
        moved: Any = one.model.apply(params, rows, hidden=jnp.asarray(hidden), start=site.layer + 1)
        states = list(moved.hidden)
        states[site.layer] = jnp.asarray(hidden)
        outputs.append(moved._replace(hidden=tuple(states)))
    wanted = pipeline.family.condition(outputs)
    pairs = zip(
        jax.tree.leaves(found), jax.tree.leaves(wanted), jax.tree.leaves(clean), strict=True
    )
    for part, edited, unedited in pairs:
        np.testing.assert_array_equal(part[:, 0], np.full_like(edited, 7.0))
        np.testing.assert_allclose(part[:, 1], edited, atol=1e-4)
        assert np.abs(edited - unedited).max() > 0.1
