"""Fine-tuning: the loss beside Stage I's, what is trained, that requests are seen evenly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.baselines import fine_tune
from emcid_jax.baselines.fine_tune import FineTuneConfig
from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import loss as objective
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import random_draws
from emcid_jax.editing.stage_one.loss import StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

REQUESTS = [
    EditRequest("dog", "goldfish", ("a photo of a {}", "{} in the snow")),
    EditRequest("cat", "tench", ("a photo of a {}",)),
    EditRequest("nurse", "engineer", ("the {}",)),
]
CONFIG = StageOneConfig(layer=2, second_layer=1, text_loss_scale=0.3, weight_decay=1e-30)


@pytest.fixture(scope="module", params=["tiny_pipeline_folder", "tiny_xl_folder"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load_pipeline(request.getfixturevalue(request.param))


def prepared(pipeline: Pipeline, config: StageOneConfig) -> StageOneInputs:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 1, 2, 16, 16, 3)).astype(np.float32)
    source = spans.source_prompts(pipeline.encoder.tokenizer, REQUESTS)
    destination = spans.destination_prompts(pipeline.encoder.tokenizer, REQUESTS)
    return preparation.prepare(pipeline, source, destination, [1, 2, 3], images, config)


def parts(pipeline: Pipeline) -> dict:
    return {name: pipeline.params[name] for name in (*pipeline.texts, "unet")}


@pytest.fixture(scope="module")
def inputs(pipeline: Pipeline) -> StageOneInputs:
    return prepared(pipeline, CONFIG)


def test_the_clean_models_loss_is_stage_ones_at_offset_zero(
    pipeline: Pipeline, inputs: StageOneInputs
) -> None:
    params = parts(pipeline)

    @jax.jit
    def both(inputs: StageOneInputs):
        draw = random_draws.draw(pipeline, inputs, random_draws.training_keys(inputs))
        sample = objective.make_sample(pipeline, params, inputs, draw, CONFIG)
        zeros = jnp.zeros(inputs.h0.shape)
        expected = objective.loss(pipeline, params, inputs, zeros, sample, CONFIG)
        return fine_tune.loss(pipeline, params, inputs, sample, CONFIG), expected.total

    found, expected = both(inputs)
    assert float(found) > 0
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("pipeline", "part"),
    [
        ("tiny_pipeline_folder", "text_encoder"),
        ("tiny_pipeline_folder", "cross_attention"),
        ("tiny_xl_folder", "text_encoder"),
        pytest.param("tiny_xl_folder", "cross_attention", marks=pytest.mark.slow),
    ],
    indirect=["pipeline"],
)
def test_training_changes_one_part_and_lowers_its_loss(pipeline: Pipeline, part: str) -> None:
    esd = part == "cross_attention"
    stage_one = dataclasses.replace(CONFIG, objective="esd" if esd else "text-only")
    config = FineTuneConfig(part, passes=20, learning_rate=3e-3, batch=3)
    before = jax.tree.map(np.array, pipeline.params)
    progress = list(fine_tune.train(pipeline, prepared(pipeline, stage_one), stage_one, config))
    assert len(progress) == 20
    losses = np.array([step.loss for step in progress])
    assert losses[-5:].mean() < (0.95 if esd else 0.5) * losses[:5].mean()
    jax.tree.map(np.testing.assert_array_equal, before, pipeline.params)  # The teacher's.

    changed = {
        jax.tree_util.keystr(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(progress[-1].params),
            strict=True,
        )
        if not np.array_equal(old, new)
    }
    if esd:
        # Queries, keys, values and output with its bias of four attentions, or SDXL's eight.
        assert len(changed) == 5 * (8 if len(pipeline.texts) > 1 else 4)
        assert all("unet" in name and "attn2" in name for name in changed)
    else:
        parts = {name.split("'")[1] for name in changed}
        assert parts == set(pipeline.texts)
        assert progress[-1].params["unet"] is pipeline.params["unet"]


def test_every_request_is_seen_equally_often() -> None:
    found = list(fine_tune.batches(6, FineTuneConfig(passes=4, batch=3)))
    assert [len(rows) for rows in found] == [3] * 8
    assert np.bincount(np.concatenate(found)).tolist() == [4] * 6
    assert sorted([*found[0], *found[1]]) == list(range(6))
    assert [len(rows) for rows in fine_tune.batches(2, FineTuneConfig(passes=3, batch=5))] == [
        2
    ] * 3
