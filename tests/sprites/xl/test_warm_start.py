"""A grown UNet draws what the old one drew, until it is trained."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
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
    """States of two encoders that both know those of a third, by affine maps."""
    rng = np.random.default_rng(seed)
    wanted = rng.normal(size=(300, 6))
    maps = np.random.default_rng(1)
    first = wanted @ maps.normal(size=(6, 7)) + maps.normal(size=7)
    second = wanted @ maps.normal(size=(6, 9)) + maps.normal(size=9)
    return [first.astype(np.float32), second.astype(np.float32)], wanted.astype(np.float32)


def test_stitched_states_are_the_mean_of_both_predictions():
    (first, second), wanted = _states(2)
    matrix, constant = stitch([first, second], wanted)
    found = np.concatenate([first, second], 1) @ matrix + constant
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    # The other encoder's states at their mean: half of what it says is left.
    alone = np.concatenate([first, np.tile(second.mean(0), (300, 1))], 1) @ matrix + constant
    np.testing.assert_allclose(alone, (wanted + wanted.mean(0)) / 2, atol=1e-3)


def test_a_grown_unet_computes_what_the_old_one_did():
    (first, second), wanted = _states(3)
    rng = np.random.default_rng(4)
    latents = jnp.asarray(rng.normal(size=(2, 4, 4, 4)), jnp.float32)
    time = jnp.array([7, 800])
    old, new = UNet2DCondition(OLD), UNet2DCondition(NEW)
    both = np.concatenate([first, second], 1)
    text, goal = (jnp.asarray(x[:20].reshape(2, 10, -1)) for x in (both, wanted))
    pooled, sizes = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), jnp.full((2, 6), 64.0)
    before = old.init(jax.random.key(0), latents, time, goal)["params"]
    before = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape), before)
    fresh = new.init(jax.random.key(1), latents, time, text, pooled, sizes)["params"]
    grown = grow_unet(cast(dict[str, Any], fresh), before, stitch([first, second], wanted))
    found = np.asarray(new.apply({"params": grown}, latents, time, text, pooled, sizes))
    expected = np.asarray(old.apply({"params": before}, latents, time, goal))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.5
