"""Stage I: what goes in (against PyTorch), the loop, and what must not matter for a concept."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextModel

from emcid_jax import parallel
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing import objective, stage_one
from emcid_jax.errors import UserError
from emcid_jax.pipeline import load_pipeline

CONFIG = StageOneConfig(layer=2, steps=3, samples_per_prompt=2, concept_batch=8)
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
def result(pipeline, inputs):
    """Three concepts together on one device."""
    return stage_one.optimise(pipeline, inputs, CONFIG, mesh(1))


def prepare(pipeline, requests, images, config=CONFIG):
    source = source_prompts(pipeline.tokenizer, requests)
    destination = destination_prompts(pipeline.tokenizer, requests)
    seeds = [request.seed for request in requests]
    return stage_one.prepare(pipeline, source, destination, seeds, images, config)


def mesh(devices):
    return parallel.make_mesh(jax.devices()[:devices])


def assert_same(got, wanted, rtol=3e-4):
    """Relative to the largest entry of each row.

    Adam divides by the gradient's size, which enlarges the rounding of small entries.
    """
    scale = np.abs(wanted).max(axis=-1, keepdims=True)
    assert (np.abs(got - wanted) <= rtol * scale).all()


def test_inputs_equal_pytorch(pipeline, inputs, images, tiny_pipeline_folder):
    text = CLIPTextModel.from_pretrained(tiny_pipeline_folder / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(tiny_pipeline_folder / "vae").eval()
    source = source_prompts(pipeline.tokenizer, REQUESTS)
    destination = destination_prompts(pipeline.tokenizer, REQUESTS)
    with torch.no_grad():
        rows = torch.as_tensor(source.ids.reshape(6, -1)).long()
        states = text(rows, output_hidden_states=True).hidden_states[CONFIG.layer + 1]
        clean = text(torch.as_tensor(destination.ids.reshape(6, -1)).long())
        flat = torch.as_tensor(images).reshape(12, 16, 16, 3).permute(0, 3, 1, 2)
        posterior = vae.encode(flat).latent_dist

    def close(got, wanted):
        np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=1e-4, atol=1e-5)

    close(inputs.hidden, states)
    close(inputs.teacher_text, clean.last_hidden_state)
    close(inputs.target_pooled, clean.pooler_output)
    scale = vae.config.scaling_factor
    close(inputs.latent_mean, scale * posterior.mean.permute(0, 2, 3, 1))
    close(inputs.latent_std, scale * posterior.std.permute(0, 2, 3, 1))
    for i, position in enumerate(source.positions[:, 0]):
        close(inputs.h0[i], states.reshape(3, 2, *states.shape[1:])[i, 0, position])
    np.testing.assert_array_equal(inputs.prompt_mask, [[1, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(inputs.seeds, [[0, 3], [0, 2**32 - 1], [0, 3]])


def test_adam_and_projection_equal_pytorch():
    config = dataclasses.replace(CONFIG, learning_rate=0.2, clamp_norm_factor=0.4)
    random = np.random.default_rng(0)
    h0, *gradients = random.standard_normal((4, 2, 16)).astype(np.float32)
    gradients[2][0] = 0

    delta = jnp.zeros((2, 16))
    state = optax.adam(config.learning_rate).init(delta)
    for gradient in gradients:
        delta, state = stage_one.adam_step(
            delta, state, jnp.asarray(gradient), jnp.asarray(h0), config
        )

    clamped = 0
    for i in range(2):
        parameter = torch.zeros(16, requires_grad=True)
        optimiser = torch.optim.Adam([parameter], lr=config.learning_rate)
        radius = config.clamp_norm_factor * torch.as_tensor(h0[i]).norm()
        for gradient in gradients:
            parameter.grad = torch.as_tensor(gradient[i])
            optimiser.step()
            with torch.no_grad():
                if parameter.norm() > radius:
                    parameter *= radius / parameter.norm()
                    clamped += 1
        np.testing.assert_allclose(delta[i], parameter.detach(), rtol=1e-5, atol=1e-6)
    assert clamped > 0


def test_steps_are_adam_on_the_objective(pipeline, inputs, result):
    """The compiled loop equals the steps written out, draw by draw."""
    batch = jax.tree.map(jnp.asarray, inputs)
    keys = stage_one.training_keys(batch)
    delta = jnp.zeros_like(batch.h0)
    state = optax.adam(CONFIG.learning_rate).init(delta)
    curve = []

    @jax.jit
    def evaluate(delta, index):
        draw = stage_one.draw(pipeline, batch, stage_one.fold_in(keys, index), 0, 1000)
        return objective.loss_and_gradient(pipeline, pipeline.params, batch, delta, draw, CONFIG)

    for index in range(CONFIG.steps):
        losses, gradient = evaluate(delta, index)
        delta, state = stage_one.adam_step(delta, state, gradient, batch.h0, CONFIG)
        curve.append(losses.total)
    np.testing.assert_allclose(result.curve, np.stack(curve, 1), rtol=1e-4)
    assert_same(result.delta, np.asarray(delta))
    np.testing.assert_allclose(result.z, result.h0 + result.delta, rtol=1e-6)
    np.testing.assert_allclose(result.h0, inputs.h0)


def test_same_memories_on_eight_devices(pipeline, inputs, result):
    program = stage_one.compile_program(pipeline, inputs, CONFIG, mesh(8))
    rows = np.minimum(np.arange(8), 2)
    batch = jax.tree.map(lambda leaf: leaf[rows], inputs)
    sharding = parallel.sharded(mesh(8))
    params = jax.device_put(stage_one.model_params(pipeline), parallel.replicated(mesh(8)))
    batch, zeros = jax.device_put((batch, np.zeros_like(batch.h0)), sharding)
    eight = program.run(params, batch, zeros)

    for leaf in jax.tree.leaves(eight):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}
    assert zeros.is_deleted()
    assert not COLLECTIVE.search(program.run.as_text())
    assert_same(np.asarray(eight.delta)[:3], result.delta)
    np.testing.assert_allclose(np.asarray(eight.curve)[:3], result.curve, rtol=1e-5)


def test_neighbours_batches_and_padding_do_not_matter(pipeline, inputs, images, result):
    # The middle request has one template: alone, its rectangle is not padded.
    alone = prepare(pipeline, REQUESTS[1:2], images[1:2, :, :1])
    single = dataclasses.replace(CONFIG, concept_batch=1)
    got = stage_one.optimise(pipeline, alone, single, mesh(1))
    assert_same(got.delta, result.delta[1:2])
    np.testing.assert_allclose(got.curve, result.curve[1:2], rtol=1e-5)

    turned = jax.tree.map(lambda leaf: leaf[::-1], inputs)
    pairs = dataclasses.replace(CONFIG, concept_batch=2)
    got = stage_one.optimise(pipeline, turned, pairs, mesh(1))
    assert_same(got.delta[::-1], result.delta)


def test_draws_depend_on_seed_concept_data_and_prompt_only(pipeline, inputs):
    batch = jax.tree.map(jnp.asarray, inputs)._replace(latent_std=jnp.zeros_like(inputs.latent_std))
    keys = stage_one.training_keys(batch)
    picks = set()
    for step in range(12):
        draw = stage_one.draw(pipeline, batch, stage_one.fold_in(keys, step), 100, 200)
        # Concepts 0 and 2 share a seed; 1 has its own. Prompts of one concept differ.
        np.testing.assert_array_equal(draw.noise[0], draw.noise[2])
        assert not np.array_equal(draw.noise[0], draw.noise[1])
        assert not np.array_equal(draw.noise[0, 0], draw.noise[0, 1])
        assert ((draw.timesteps >= 100) & (draw.timesteps < 200)).all()
        means = np.asarray(inputs.latent_mean)
        for concept, prompt in ((0, 0), (0, 1), (1, 0)):
            same = [
                np.array_equal(draw.latents[concept, prompt], m[prompt]) for m in means[concept]
            ]
            assert sum(same) == 1
            picks.add(same.index(True))
    assert picks == {0, 1}


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


def test_last_block_can_be_edited(pipeline):
    config = StageOneConfig(layer=3, steps=2, objective="text-only", weight_decay=0.0)
    inputs = prepare(pipeline, REQUESTS[:1], None, config)
    result = stage_one.optimise(pipeline, inputs, config, mesh(1))
    # Above the last block nothing mixes tokens, so the pooled token does not feel the subject.
    np.testing.assert_array_equal(result.delta, 0)


def test_unknown_layer_is_named(pipeline):
    with pytest.raises(UserError, match=r"stage_one.layer=4: .* blocks 0 to 3"):
        prepare(pipeline, REQUESTS, None, StageOneConfig(layer=4, objective="text-only"))


def test_diverged_memories_are_refused(pipeline, inputs):
    bad = inputs._replace(h0=inputs.h0 * np.array([[1.0], [np.nan], [1.0]], np.float32))
    with pytest.raises(UserError, match=r"requests \[1\] are not finite"):
        stage_one.optimise(
            pipeline, bad, dataclasses.replace(CONFIG, objective="text-only"), mesh(1)
        )


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("memory", [110, 333, 499, 10_000])
def test_batch_is_as_large_as_memory_allows(multiple, memory):
    asked = []

    def needed(size):
        asked.append(size)
        return 100 + 10 * size // multiple

    largest = 40 * multiple
    wanted = max(size for size in range(multiple, largest + 1, multiple) if needed(size) <= memory)
    asked.clear()
    assert stage_one.choose_concept_batch(needed, largest, multiple, memory) == wanted
    assert len(asked) <= 3


def test_too_little_memory_is_said():
    with pytest.raises(UserError, match=r"one concept per device needs 2\.00 GiB of the 1\.00 GiB"):
        stage_one.choose_concept_batch(lambda size: size * 2**31, 4, 1, 2**30)


def test_memory_decides_the_batch(pipeline, inputs):
    """End to end on a compiled program: with room for one concept only, one is taken."""
    config = dataclasses.replace(CONFIG, objective="text-only", concept_batch=0)
    free = stage_one.compile_program(pipeline, inputs, config, mesh(1))
    assert free.concepts == 3
    single = dataclasses.replace(config, concept_batch=1)
    one = stage_one.compile_program(pipeline, inputs, single, mesh(1))
    assert one.bytes_per_device < free.bytes_per_device
    tight = stage_one.compile_program(
        pipeline, inputs, config, mesh(1), memory=one.bytes_per_device
    )
    assert tight.concepts == 1
