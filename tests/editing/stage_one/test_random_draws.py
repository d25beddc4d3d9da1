"""Stage I's random numbers: what they depend on, and what they must not depend on."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.stage_one import random_draws
from emcid_jax.editing.stage_one.loss import StageOneInputs
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

SEEDS = [[0, 3], [0, 2**32 - 1], [0, 3]]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def inputs(prompts: int = 2, std: float = 0.0) -> StageOneInputs:
    """Three concepts with two images per prompt; empty but for what a draw reads."""
    means = np.random.default_rng(0).standard_normal((3, 2, 2, 4, 4, 1), np.float32)
    means = jnp.asarray(means[:, :, :prompts])
    unread = {field: jnp.zeros((3, prompts)) for field in StageOneInputs._fields}
    unread["encoders"] = {}
    read = {"seeds": jnp.asarray(SEEDS, jnp.uint32), "latent_mean": means}
    return StageOneInputs(**unread | read | {"latent_std": jnp.full_like(means, std)})


def test_draws_depend_on_seed_step_and_prompt_only(pipeline):
    batch = inputs()
    keys = random_draws.training_keys(batch)
    picks = set()
    for step in range(12):
        draw = random_draws.draw(pipeline, batch, random_draws.fold_in(keys, step), 100, 200)
        # Concepts 0 and 2 share a seed; 1 has its own. Prompts of one concept differ.
        np.testing.assert_array_equal(draw.noise[0], draw.noise[2])
        assert not np.array_equal(draw.noise[0], draw.noise[1])
        assert not np.array_equal(draw.noise[0, 0], draw.noise[0, 1])
        assert ((draw.timesteps >= 100) & (draw.timesteps < 200)).all()
        for concept, prompt in ((0, 0), (0, 1), (1, 0)):
            images = batch.latent_mean[concept, :, prompt]
            same = [np.array_equal(draw.latents[concept, prompt], image) for image in images]
            assert sum(same) == 1
            picks.add(same.index(True))
    assert picks == {0, 1}


def test_padding_changes_no_draw(pipeline):
    few, more = (
        random_draws.draw(pipeline, batch, random_draws.training_keys(batch))
        for batch in (inputs(prompts=1, std=0.5), inputs(prompts=2, std=0.5))
    )
    for got, wanted in zip(few, more, strict=True):
        np.testing.assert_array_equal(got, wanted[:, :1])


def test_held_out_draws_are_not_those_of_any_step(pipeline):
    batch = inputs()
    held_out = random_draws.draw(
        pipeline, batch, random_draws.fold_in(random_draws.held_out_keys(batch), 0)
    )
    for step in range(4):
        trained = random_draws.draw(
            pipeline, batch, random_draws.fold_in(random_draws.training_keys(batch), step)
        )
        assert not np.array_equal(held_out.noise, trained.noise)


def test_timesteps_cover_the_schedule(pipeline):
    short = dataclasses.replace(pipeline.schedule, num_train_timesteps=3)
    batch = inputs()
    keys = random_draws.training_keys(batch)
    seen = {
        int(t)
        for step in range(12)
        for t in np.ravel(
            random_draws.draw(
                dataclasses.replace(pipeline, schedule=short),
                batch,
                random_draws.fold_in(keys, step),
            ).timesteps
        )
    }
    assert seen == {0, 1, 2}
