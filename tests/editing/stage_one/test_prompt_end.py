"""The ends of prompts alone against whole prompts: the same loss, gradient and memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.stage_one import loss
from emcid_jax.editing.stage_one.prepare import prepare
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.pipelines.pipeline import load_pipeline

CONFIG = StageOneConfig(layer=0, objective="text-only", steps=3)
REQUESTS = [
    EditRequest("red fox", "whale", ("a photo of {}", "{} in the snow")),
    EditRequest("owl", "small cat", ("{}", "an image of a {}")),
]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


def test_the_ends_of_prompts_give_the_loss_and_gradient_of_whole_prompts(pipeline, monkeypatch):
    monkeypatch.setattr(loss, "runs_ends", lambda config, site, texts: True)
    prompts = [
        make(pipeline.encoder.tokenizer, REQUESTS) for make in (source_prompts, destination_prompts)
    ]
    inputs = prepare(pipeline, *prompts, [0, 1], None, CONFIG)
    own = inputs.encoders["text_encoder"]
    assert own.behind.shape[2] < own.hidden.shape[2]
    without = own._replace(earlier=None, behind=None)
    whole = inputs._replace(ends=None, encoders={"text_encoder": without})
    size = np.asarray(inputs.h0).shape
    delta = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)

    @jax.jit
    def evaluate(inputs):
        return loss.loss_and_gradient(pipeline, pipeline.params, inputs, delta, None, CONFIG)

    (ends, ends_gradient), (full, full_gradient) = evaluate(inputs), evaluate(whole)
    np.testing.assert_allclose(ends.text, full.text, rtol=1e-5)
    np.testing.assert_allclose(
        ends_gradient, full_gradient, rtol=1e-4, atol=1e-6 * np.abs(full_gradient).max()
    )
    assert np.abs(np.asarray(full_gradient)).max() > 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"layer": 10}, False),
        ({"objective": "ablate-dest"}, False),
        ({"edited_tokens": 2}, False),
    ],
)
def test_only_the_text_loss_far_below_the_last_block_runs_ends(change, expected):
    config = dataclasses.replace(CONFIG, **change)
    texts = {"text_encoder": ClipTextModel(ClipTextConfig(num_hidden_layers=12))}
    (site,) = sites(config, texts)
    assert loss.runs_ends(config, site, texts) is expected
