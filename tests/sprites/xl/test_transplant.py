"""Encoders cut out of another compute what they should, by the modules of the whole one."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, TextOutput
from emcid_jax.models.weights.params import abstract_params
from emcid_jax.sprites.xl.transplant import random_turn, shallower, turned, unnormed

SIZES = ClipTextConfig(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=2,
    vocab_size=50,
    max_position_embeddings=7,
    eos_token_id=49,
)


@pytest.fixture(scope="module")
def ids():
    return jnp.asarray(np.random.default_rng(3).integers(0, 50, size=(5, 7)))


@pytest.fixture(scope="module")
def text(ids):
    """Random weights, biases and norms among them."""
    rng = np.random.default_rng(1)

    def weight(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.25 * rng.normal(size=leaf.shape))

    return jax.tree.map_with_path(weight, abstract_params(ClipTextModel(SIZES), ids))


def _run(params, ids, **sizes):
    config = ClipTextConfig(**{**vars(SIZES), **sizes})
    return cast(TextOutput, jax.jit(ClipTextModel(config).apply)({"params": params}, ids))


def _same(found, wanted, atol):
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=atol)


def test_a_turned_encoder_has_the_same_states_in_another_basis(text, ids):
    own, wide = _run(text, ids), _run(turned(text, 30, 2, seed=8), ids, hidden_size=30)
    turn = random_turn(24, 30, seed=8)
    np.testing.assert_allclose(turn @ turn.T, np.eye(24) - 1 / 24, atol=1e-6)
    for before, after in zip(own.hidden, wide.hidden, strict=True):
        _same(after, before @ turn, atol=2e-4)
    for before, after in zip(own.keys, wide.keys, strict=True):
        _same(after, before, atol=2e-4)
    kernel = np.random.default_rng(4).normal(size=(24, 6))
    norm = text["text_model"]["final_layer_norm"]
    found = wide.pooled @ unnormed(kernel, norm, turn) + norm["bias"] @ kernel
    np.testing.assert_allclose(found, own.pooled @ kernel, atol=1e-3)


def test_a_turned_encoder_has_other_weights(text):
    """Not the old ones padded: every state of the new basis mixes all of the old."""
    wide = turned(text, 30, 2, seed=8)["text_model"]["embeddings"]["token_embedding"]["embedding"]
    assert (np.abs(wide).min(1) > 0).all()
    assert np.abs(random_turn(24, 30, 8) - random_turn(24, 30, 9)).max() > 0.1


def test_left_out_blocks_pass_their_input_on(text, ids):
    found = _run(shallower(text, (0, 2), 40), ids, num_hidden_layers=3)
    silent = jax.tree.map(jnp.asarray, text)
    for block in (1, 3):
        layer = silent["text_model"]["encoder"][f"layers.{block}"]
        for part in (layer["self_attn"]["out_proj"], layer["mlp"]["fc2"]):
            part.update(jax.tree.map(jnp.zeros_like, part))
    wanted = _run(silent, ids)
    _same(found.hidden[0], wanted.hidden[0], atol=1e-5)
    _same(found.hidden[-2], wanted.hidden[-1], atol=1e-5)


def test_the_weakest_hidden_units_are_left_out(text, ids):
    """As with zeros in their place, which leave the other units where they were."""
    found = _run(shallower(text, (0, 1, 2, 3), 33), ids, num_hidden_layers=5, intermediate_size=33)
    silent = jax.tree.map(jnp.asarray, text)
    for block in range(4):
        mlp = silent["text_model"]["encoder"][f"layers.{block}"]["mlp"]
        first, second = np.asarray(mlp["fc1"]["kernel"]), np.array(mlp["fc2"]["kernel"])
        strength = [(first[:, i] ** 2).sum() * (second[i] ** 2).sum() for i in range(40)]
        second[sorted(range(40), key=lambda i: strength[i])[:7]] = 0
        mlp["fc2"]["kernel"] = second
    wanted = _run(silent, ids)
    _same(found.hidden[3], wanted.hidden[3], atol=1e-5)
