"""The attention loss: its layers, padding that is left out, and the loop on it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import attention, run
from emcid_jax.editing.stage_one.attention import Layer
from emcid_jax.editing.stage_one.prepare import prepare
from emcid_jax.models.image.unet_config import UNetConfig
from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from tests.editing.stage_one.test_run import COLLECTIVE

CONFIG = StageOneConfig(
    layer=1, steps=40, learning_rate=0.05, objective="attention", text_loss_scale=0.1
)
REQUESTS = [
    EditRequest("a dog", "a cat", ("a photo of {}", "{}"), seed=3),
    EditRequest("Claude Monet", "Salvador Dali", ("the art of {}",), seed=5),
    EditRequest("the city", "the beach", ("a picture of {}",), seed=3),
]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


def prepared(pipeline, config=CONFIG):
    tokenizer = pipeline.encoder.tokenizer
    pairs = source_prompts(tokenizer, REQUESTS), destination_prompts(tokenizer, REQUESTS)
    return prepare(pipeline, *pairs, [3, 3, 3], None, config)


def test_the_last_token_stands_for_the_padding_that_is_cut_off():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    layer = Layer(draw(5, 2, 3), draw(7, 6), draw(7, 6), draw(6, 4))
    states = draw(2, 4, 7)
    whole = jnp.concatenate([states, jnp.repeat(states[:, -1:], 9, axis=1)], axis=1)
    cut = attention.answers(layer, states, 9)
    np.testing.assert_allclose(cut, attention.answers(layer, whole, 0), rtol=1e-4, atol=1e-5)
    assert np.abs(cut - attention.answers(layer, states, 0)).max() > 0.01


def test_heads_of_models_that_have_more_of_them_further_down():
    counts = UNetConfig(attention_head_dim=(5, 10, 20, 40))
    names = ("down_blocks.0", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.3")
    assert [attention.heads(counts, name) for name in names] == [5, 20, 40, 40, 5]


def test_shapes_are_those_of_the_layers(pipeline, tiny_pipeline_folder):
    found = run.param_shapes(abstract_pipeline(tiny_pipeline_folder), CONFIG)
    made = run.model_params(pipeline, CONFIG)
    assert len(made["attention"]) > 1
    assert "unet" not in made

    def about(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert about(found) == about(made)


def test_memories_give_the_answers_of_the_destination_on_any_number_of_devices(pipeline):
    inputs = prepared(pipeline)
    result = run.optimise(pipeline, inputs, CONFIG, parallel.make_mesh(jax.devices()[:1]))
    np.testing.assert_allclose(result.start.noise, 1, rtol=1e-5)
    assert (result.end.noise < 0.5).all()

    mesh = parallel.make_mesh(jax.devices())
    program = run.compile_program(pipeline, inputs, CONFIG, mesh)
    assert not COLLECTIVE.search(program.run.as_text())
    eight = run.optimise(pipeline, inputs, CONFIG, mesh, program)
    scale = np.abs(result.delta).max()
    np.testing.assert_allclose(eight.delta, result.delta, atol=2e-3 * scale)


def test_few_tokens_of_padding_stand_for_all(pipeline):
    """The loss of the same offsets with 12 of 77 tokens: near the whole, not equal."""
    whole = prepared(pipeline)
    few = prepared(pipeline, dataclasses.replace(CONFIG, text_tokens=12))
    ends = []
    for inputs, tokens in ((whole, 0), (few, 12)):
        config = dataclasses.replace(CONFIG, text_tokens=tokens)
        found = run.optimise(pipeline, inputs, config, parallel.make_mesh(jax.devices()[:1]))
        ends.append(found.end.noise)
    np.testing.assert_allclose(ends[0], ends[1], rtol=0.3)
