"""A grown UNet draws what the old one drew, until it is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.weights.params import abstract_params
from emcid_jax.sprites.xl.warm_start import grow_unet, stitch

OLD = UNetConfig(
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=(1, 1),
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    attention_head_dim=(2, 2),
    cross_attention_dim=(6, 6),
    transformer_layers_per_block=(1, 1),
    only_cross_attention=(False, False),
    norm_num_groups=4,
)
NEW = dataclasses.replace(
    OLD,
    cross_attention_dim=(16, 16),
    transformer_layers_per_block=(1, 2),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=5 + 6 * 4,
)


def _states(seed):
    """States of two encoders that both know those of a third, which are about `EMPTY`."""
    told = np.random.default_rng(seed).normal(size=(300, 6))
    maps = np.random.default_rng(1)
    first, second = told @ maps.normal(size=(6, 7)), told @ maps.normal(size=(6, 9))
    wanted = told + EMPTY
    return [x.astype(np.float32) for x in (first, second)], wanted.astype(np.float32)


def _weights(rng, model, *inputs):
    """As at the start of training, with biases and norms that do something."""

    def weight(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            return np.float32(values / np.sqrt(np.prod(leaf.shape[:-1])))
        return np.float32((path[-1].key == "scale") + 0.05 * values)

    return jax.tree.map_with_path(weight, abstract_params(model, *inputs))


EMPTY = np.array([0.3, -1, 2, 0, 0.5, 1], np.float32)


def test_stitched_states_are_the_mean_of_both_predictions():
    (first, second), wanted = _states(2)
    matrix = stitch([first, second], wanted, EMPTY)

    def read(first, second):
        return np.concatenate([first, second], 1) @ matrix + EMPTY

    np.testing.assert_allclose(read(first, second), wanted, atol=1e-3)
    # One encoder alone says half of it, and none at all the empty prompt.
    half = (wanted + EMPTY) / 2
    np.testing.assert_allclose(read(first, 0 * second), half, atol=1e-3)
    np.testing.assert_allclose(read(0 * first, second), half, atol=1e-3)


def test_a_grown_unet_computes_what_the_old_one_did():
    (first, second), wanted = _states(3)
    rng = np.random.default_rng(4)
    latents = jnp.asarray(rng.normal(size=(2, 4, 4, 4)), jnp.float32)
    time = jnp.array([7, 800])
    old, new = UNet2DCondition(OLD), UNet2DCondition(NEW)
    both = np.concatenate([first, second], 1)
    text, goal = (jnp.asarray(x[:20].reshape(2, 10, -1)) for x in (both, wanted))
    pooled, sizes = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), jnp.full((2, 6), 64.0)
    before = _weights(rng, old, latents, time, goal)
    fresh = _weights(rng, new, latents, time, text, pooled, sizes)
    grown = grow_unet(fresh, before, stitch([first, second], wanted, EMPTY), EMPTY)
    found = np.asarray(jax.jit(new.apply)({"params": grown}, latents, time, text, pooled, sizes))
    expected = np.asarray(jax.jit(old.apply)({"params": before}, latents, time, goal))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.5
