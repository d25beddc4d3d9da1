"""Stage I: the loop against its steps written out, and what must not matter for a concept."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.stage_one import adam_loop, random_draws
from emcid_jax.editing.stage_one import loss as objective
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError

CONFIG = StageOneConfig(layer=2, steps=3, samples_per_prompt=2, concept_batch=8)
PAIRS = dataclasses.replace(CONFIG, concept_batch=2)
REQUESTS = [
    EditRequest("a dog", "a cat", ("a photo of {}", "{}"), seed=3),
    EditRequest("Claude Monet", "Salvador Dali", ("the art of {}",), seed=2**32 - 1),
    EditRequest("the city", "the beach", ("a picture of {}", "{}"), seed=3),
]
COLLECTIVE = re.compile(r"all-(reduce|gather|to-all)|collective-permute|reduce-scatter")


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def inputs(pipeline, images):
    return prepare(pipeline, REQUESTS, images)


@pytest.fixture(scope="module")
def of_two(pipeline, inputs):
    """The program for two concepts on one device."""
    return stage_one.compile_program(pipeline, inputs, PAIRS, mesh(1))


@pytest.fixture(scope="module")
def result(pipeline, inputs, of_two):
    """Of three concepts, two by two."""
    return stage_one.optimise(pipeline, inputs, PAIRS, mesh(1), of_two)


@pytest.fixture(scope="module")
def on_eight(pipeline, inputs):
    """The program for eight devices, each with a copy of the weights."""
    return stage_one.compile_program(pipeline, inputs, CONFIG, mesh(8))


def prepare(pipeline, requests, images, config=CONFIG):
    source = source_prompts(pipeline.encoder.tokenizer, requests)
    destination = destination_prompts(pipeline.encoder.tokenizer, requests)
    seeds = [request.seed for request in requests]
    return preparation.prepare(pipeline, source, destination, seeds, images, config)


def mesh(devices):
    return parallel.make_mesh(jax.devices()[:devices])


def assert_same(got, wanted, rtol=3e-4):
    """Relative to the largest entry of each row.

    Adam divides by the gradient's size, which enlarges the rounding of small entries.
    """
    scale = np.abs(wanted).max(axis=-1, keepdims=True)
    assert (np.abs(got - wanted) <= rtol * scale).all()


def test_steps_by_the_text_loss_come_first(pipeline):
    """The others start anew where a run by the text loss alone ends."""
    config = dataclasses.replace(CONFIG, objective="attention", concept_batch=3)
    read = prepare(pipeline, REQUESTS, None, config)
    text = dataclasses.replace(config, objective="text-only", steps=4)
    begun = stage_one.optimise(pipeline, read, text, mesh(1))
    program = stage_one.compile_program(pipeline, read, config, mesh(1))
    wanted = program.run(stage_one.model_params(pipeline, config), read, jnp.asarray(begun.delta))
    found = stage_one.optimise(pipeline, read, dataclasses.replace(config, text_steps=4), mesh(1))
    assert_same(found.delta, np.asarray(wanted.delta))
    assert_same(found.curve, np.asarray(wanted.curve))
    assert (np.linalg.norm(begun.delta, axis=-1) > 0.1 * np.linalg.norm(found.delta, axis=-1)).all()


def test_an_offset_is_shortened_as_far_as_its_loss_allows(pipeline):
    """Against every share of it tried one by one; without `shorten` nothing else changes."""
    config = dataclasses.replace(
        CONFIG, objective="attention", concept_batch=3, steps=8, learning_rate=2.0, shorten=0.05
    )
    read = prepare(pipeline, REQUESTS, None, config)
    plain = dataclasses.replace(config, shorten=0.0)
    long = stage_one.optimise(pipeline, read, plain, mesh(1))
    program = stage_one.compile_program(pipeline, read, config, mesh(8))
    assert not COLLECTIVE.search(program.run.as_text())
    found = stage_one.optimise(pipeline, read, config, mesh(8), program)

    params = stage_one.model_params(pipeline, config)
    batch, kept = jax.tree.map(jnp.asarray, read), []
    evaluate = jax.jit(
        lambda offset: adam_loop.held_out_loss(pipeline, params, batch, offset, plain).total
    )
    losses = {share: np.asarray(evaluate(share * long.delta)) for share in adam_loop.SHARES}
    for concept, allowed in enumerate(losses[1.0] + 0.05 * long.start.total):
        share = min(one for one, loss in losses.items() if loss[concept] <= allowed)
        np.testing.assert_allclose(found.end.total[concept], losses[share][concept], rtol=1e-3)
        kept.append(share)
    assert_same(found.delta, np.array(kept)[:, None] * long.delta)
    assert_same(found.z, read.h0 + found.delta)
    assert min(kept) < 1.0
    np.testing.assert_allclose(found.start.total, long.start.total, rtol=1e-4)


def test_steps_are_adam_on_the_objective(pipeline, inputs, result):
    """The compiled loop equals the steps written out: on new samples, and on a pool of two."""
    batch = jax.tree.map(jnp.asarray, inputs)
    keys = random_draws.training_keys(batch)

    @jax.jit
    def evaluate(delta, index):
        draw = random_draws.draw(pipeline, batch, random_draws.fold_in(keys, index))
        sample = objective.make_sample(pipeline, pipeline.params, batch, draw, CONFIG)
        return objective.loss_and_gradient(pipeline, pipeline.params, batch, delta, sample, CONFIG)

    pooled = dataclasses.replace(CONFIG, teacher_pool=2)
    program = stage_one.compile_program(pipeline, inputs, pooled, mesh(8))
    assert not COLLECTIVE.search(program.run.as_text())
    from_pool = stage_one.optimise(pipeline, inputs, pooled, mesh(8), program)

    where = sites(CONFIG, pipeline.texts)
    for found, samples in ((result, (0, 1, 2)), (from_pool, (0, 1, 0))):
        delta = jnp.zeros_like(batch.h0)
        state = optax.adam(CONFIG.learning_rate).init(delta)
        curve = []
        for index in samples:
            losses, gradient = evaluate(delta, index)
            delta, state = adam_loop.adam_step(delta, state, gradient, batch.h0, CONFIG, where)
            curve.append(losses.total)
        np.testing.assert_allclose(found.curve, np.stack(curve, 1), rtol=1e-4)
        assert_same(found.delta, np.asarray(delta))
        np.testing.assert_allclose(found.z, found.h0 + found.delta, rtol=1e-6)
        np.testing.assert_allclose(found.h0, inputs.h0)


def test_same_memories_on_eight_devices(pipeline, inputs, result, on_eight):
    rows = np.minimum(np.arange(8), 2)
    batch = jax.tree.map(lambda leaf: leaf[rows], inputs)
    sharding = parallel.sharded(mesh(8))
    params = jax.device_put(stage_one.model_params(pipeline, CONFIG), parallel.replicated(mesh(8)))
    batch, zeros = jax.device_put((batch, np.zeros_like(batch.h0)), sharding)
    eight = on_eight.run(params, batch, zeros)

    for leaf in jax.tree.leaves(eight):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}
    assert zeros.is_deleted()
    assert not COLLECTIVE.search(on_eight.run.as_text())
    assert_same(np.asarray(eight.delta)[:3], result.delta)
    np.testing.assert_allclose(np.asarray(eight.curve)[:3], result.curve, rtol=1e-5)


def test_weights_may_be_shared_by_devices(pipeline, inputs, result, on_eight):
    """Four hold a copy together: less memory, and the same memories."""
    shared = parallel.make_mesh(jax.devices(), weight_shards=4)
    program = stage_one.compile_program(pipeline, inputs, CONFIG, shared)
    params = stage_one.model_params(pipeline, CONFIG)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    spared = parallel.spared(params, shared)
    assert spared > 0.7 * whole
    held = [p.run.memory_analysis().argument_size_in_bytes for p in (program, on_eight)]
    assert 0.75 * spared < held[1] - held[0] <= spared  # Some weights are not read.
    assert "gather" in COLLECTIVE.findall(program.run.as_text())
    got = stage_one.optimise(pipeline, inputs, CONFIG, shared, program)
    assert_same(got.delta, result.delta)
    np.testing.assert_allclose(got.curve, result.curve, rtol=1e-5)


def test_neighbours_batches_and_padding_do_not_matter(pipeline, inputs, images, of_two, result):
    # The middle request has one template: alone, its rectangle is not padded.
    alone = prepare(pipeline, REQUESTS[1:2], images[1:2, :, :1])
    single = dataclasses.replace(CONFIG, concept_batch=1)
    got = stage_one.optimise(pipeline, alone, single, mesh(1))
    assert_same(got.delta, result.delta[1:2])
    np.testing.assert_allclose(got.curve, result.curve[1:2], rtol=1e-5)

    turned = jax.tree.map(lambda leaf: leaf[::-1], inputs)
    got = stage_one.optimise(pipeline, turned, PAIRS, mesh(1), of_two)
    assert_same(got.delta[::-1], result.delta)


def test_text_only_needs_no_images_and_nears_the_destination(pipeline):
    config = StageOneConfig(
        layer=2, steps=60, learning_rate=0.05, objective="text-only", text_loss_scale=1.0
    )
    inputs = prepare(pipeline, REQUESTS[:1], None, config)
    result = stage_one.optimise(pipeline, inputs, config, mesh(1))
    assert result.end.text[0] < result.start.text[0]
    assert result.end.noise[0] == 0
    bound = config.clamp_norm_factor * np.linalg.norm(result.h0[0])
    assert np.linalg.norm(result.delta[0]) <= bound * (1 + 1e-6)


def test_several_tokens_have_offsets_and_bounds_of_their_own(pipeline):
    """Their final states near the destination's; no device asks another for anything."""
    config = StageOneConfig(
        layer=2, steps=60, learning_rate=0.05, objective="text-only", text_loss_scale=1.0,
        clamp_norm_factor=0.2, edited_tokens=3,
    )  # fmt: skip
    inputs = prepare(pipeline, REQUESTS, None, config)
    program = stage_one.compile_program(pipeline, inputs, config, mesh(8))
    assert not COLLECTIVE.search(program.run.as_text())
    result = stage_one.optimise(pipeline, inputs, config, mesh(8), program)
    assert (result.end.text < 0.9 * result.start.text).all()
    sizes, starts = (
        np.linalg.norm(part.reshape(3, 3, -1), axis=-1) for part in (result.delta, result.h0)
    )
    assert (sizes > 0).all()
    np.testing.assert_array_less(sizes, config.clamp_norm_factor * starts * (1 + 1e-5))
    alone = stage_one.optimise(
        pipeline, jax.tree.map(lambda leaf: leaf[1:2], inputs), config, mesh(1)
    )
    assert_same(alone.delta, result.delta[1:2])


def test_last_block_can_be_edited(pipeline):
    config = StageOneConfig(layer=3, steps=2, objective="text-only", weight_decay=0.0)
    inputs = prepare(pipeline, REQUESTS[:1], None, config)
    result = stage_one.optimise(pipeline, inputs, config, mesh(1))
    # Above the last block nothing mixes tokens, so the pooled token does not feel the subject.
    np.testing.assert_array_equal(result.delta, 0)


def test_diverged_memories_are_refused(pipeline, inputs):
    bad = inputs._replace(h0=inputs.h0 * np.array([[1.0], [np.nan], [1.0]], np.float32))
    with pytest.raises(UserError, match=r"requests \[1\] are not finite"):
        stage_one.optimise(
            pipeline, bad, dataclasses.replace(CONFIG, objective="text-only"), mesh(1)
        )


def test_memory_decides_the_batch(pipeline, inputs):
    """End to end on a compiled program: with room for one concept only, one is taken."""
    config = dataclasses.replace(CONFIG, objective="text-only", concept_batch=0)
    free = stage_one.compile_program(pipeline, inputs, config, mesh(1))
    assert free.batch == ConceptBatch(3)
    single = dataclasses.replace(config, concept_batch=1)
    one = stage_one.compile_program(pipeline, inputs, single, mesh(1))
    assert one.bytes_per_device < free.bytes_per_device
    tight = stage_one.compile_program(
        pipeline, inputs, config, mesh(1), memory=one.bytes_per_device
    )
    assert tight.batch == ConceptBatch(1)


def test_prompts_one_by_one_need_less_and_change_nothing(pipeline, inputs):
    """On 16 x 16 latents; the two prompts of the concept have their weights in the loss."""
    latents = np.random.default_rng(0).standard_normal((1, 1, 2, 16, 16, 4), np.float32)
    large = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), inputs)
    large = large._replace(
        latent_mean=jnp.asarray(latents),
        latent_std=jnp.zeros(latents.shape, jnp.float32),
        prompt_mask=jnp.array([[1.0, 0.25]]),
    )
    params = stage_one.model_params(pipeline, CONFIG)
    sample = jax.jit(adam_loop.training_samples(pipeline, params, large, CONFIG))(jnp.array(0))
    delta = jnp.asarray(np.random.default_rng(1).standard_normal(large.h0.shape), jnp.float32)

    def compiled(one_by_one):
        def total(delta):
            losses = objective.loss(pipeline, params, large, delta, sample, CONFIG, one_by_one)
            return losses.total.sum()

        return jax.jit(jax.value_and_grad(total)).lower(delta).compile()

    together, single = compiled(False), compiled(True)
    needed = [p.memory_analysis().temp_size_in_bytes for p in (together, single)]
    assert needed[1] < 0.7 * needed[0]
    wanted, got = together(delta), single(delta)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-6)
