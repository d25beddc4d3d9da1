"""The ramp of two units against its formula in float64, in both activations and stored types."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emcid_jax.editing.encoder import hidden_units as ramp
from emcid_jax.models.text.transformer import ACTIVATIONS
from emcid_jax.runtime.errors import UserError

DIM, GATES = 16, 5


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(GATES, DIM)) / DIM
    mean, answers = rng.normal(size=DIM), rng.normal(size=(GATES, DIM))
    thresholds = rng.uniform(0.65, 0.9, GATES)
    units = ramp.make_units(1, directions, mean, thresholds, answers)
    return directions, mean, thresholds, answers, units


def opened(activation: str, score: float, threshold: float) -> float:
    """The ramp of the docstring, in Python's own floats."""
    act = {
        "quick_gelu": lambda t: t / (1 + math.exp(-1.702 * t)) if t > -300 else 0.0,
        "gelu": lambda t: t * 0.5 * (1 + math.erf(t / math.sqrt(2))),
    }[activation]
    u = ramp.HEIGHT * (score - threshold) / ramp.WIDTH + ramp.HEIGHT
    return (act(u) - act(u - ramp.HEIGHT)) / ramp.HEIGHT


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_two_units_add_the_answer_times_the_ramp(made, activation):
    directions, mean, thresholds, answers, units = made
    # States whose score with gate 0 runs from 0 to 2.
    along = directions[0] / (directions[0] @ directions[0])
    scores = np.concatenate([np.linspace(0, 2, 81), thresholds[0] + np.linspace(-0.1, 0.1, 41)])
    states = mean + scores[:, None] * along
    disk = ramp.disk_arrays(units)
    inner = states.astype(np.float32) @ disk["fc1.weight"].T + disk["fc1.bias"]
    key = np.asarray(ACTIVATIONS[activation](jnp.asarray(inner[:, :2])))
    found = key @ disk["fc2.weight"][:, :2].T
    # The bias stands on a grid, which moves the threshold by at most this.
    shift = ramp.GRID / 2 * ramp.WIDTH / ramp.HEIGHT
    low, high = (
        np.array([opened(activation, score + by, thresholds[0]) for score in scores])
        for by in (-shift, shift)
    )
    strength = found @ answers[0] / (answers[0] @ answers[0])
    np.testing.assert_allclose(found, strength[:, None] * answers[0], atol=1e-5)
    assert (strength > np.minimum(low, high) - 5e-3).all()
    assert (strength < np.maximum(low, high) + 5e-3).all()
    # Both activations dip below 0 where the ramp begins; far below that there is nothing.
    dip = np.asarray(ACTIVATIONS[activation](jnp.linspace(-3, 0, 301))).min() / ramp.HEIGHT
    assert 1.02 * dip - 1e-4 < strength.min() < 0.5 * dip
    assert np.abs(strength[scores < thresholds[0] - 1.4 * ramp.WIDTH]).max() < 1e-4
    np.testing.assert_allclose(strength[scores > thresholds[0] + ramp.WIDTH], 1, atol=2e-3)


def test_units_of_any_height_say_how_far_they_are_open(made):
    """Those of an edit file of an older version, too, whose ramps were less steep."""
    directions, mean, thresholds, _, units = made
    along = directions[0] / (directions[0] @ directions[0])
    scores = thresholds[0] + np.linspace(-0.1, 0.05, 31)
    states = (mean + scores[:, None] * along).astype(np.float32)
    wanted = np.clip((scores - thresholds[0]) / ramp.WIDTH + 1, 0, 1)
    for height in (4.0, ramp.HEIGHT):
        own = dataclasses.replace(
            units,
            rows=units.rows * height / ramp.HEIGHT,
            biases=units.biases * height / ramp.HEIGHT,
            answers=units.answers * ramp.HEIGHT / height,
        )
        found = ramp.openness(own, states, "quick_gelu")[:, 0]
        assert np.abs(found - wanted).max() < 0.1 + ramp.GRID / ramp.HEIGHT / 2
        key = [
            ACTIVATIONS["quick_gelu"](jnp.asarray(states @ own.rows[0] + bias))
            for bias in own.biases[0]
        ]
        np.testing.assert_allclose(found, np.clip((key[0] - key[1]) / height, 0, 1), atol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_holds_the_biases_exactly(made, kind):
    biases = made[-1].biases
    np.testing.assert_array_equal(biases.astype(kind).astype(np.float32), biases)
    np.testing.assert_array_equal(biases[:, 0] - biases[:, 1], np.full(GATES, ramp.HEIGHT))


def parameters(blocks: int, inner: int) -> dict:
    rng = np.random.default_rng(1)
    layers = {
        f"layers.{i}": {
            "mlp": {
                "fc1": {
                    "kernel": jnp.asarray(rng.normal(size=(DIM, inner)), jnp.float32),
                    "bias": jnp.asarray(rng.normal(size=inner), jnp.float32),
                },
                "fc2": {
                    "kernel": jnp.asarray(rng.normal(size=(inner, DIM)), jnp.float32),
                    "bias": jnp.zeros(DIM),
                },
            }
        }
        for i in range(blocks)
    }
    return {"text_model": {"encoder": layers}}


def test_other_blocks_get_units_of_zeros_and_the_base_stays(made):
    units = made[-1]
    base = parameters(3, 8)
    wide = ramp.with_units(base, units)["text_model"]["encoder"]
    old = base["text_model"]["encoder"]
    for name, layer in wide.items():
        mlp, before = layer["mlp"], old[name]["mlp"]
        assert mlp["fc1"]["kernel"].shape == (DIM, 8 + 2 * GATES)
        assert before["fc1"]["kernel"].shape == (DIM, 8)
        np.testing.assert_array_equal(mlp["fc1"]["kernel"][:, :8], before["fc1"]["kernel"])
        np.testing.assert_array_equal(mlp["fc2"]["kernel"][:8], before["fc2"]["kernel"])
        added = [mlp["fc1"]["kernel"][:, 8:], mlp["fc1"]["bias"][8:], mlp["fc2"]["kernel"][8:]]
        assert all(np.any(np.asarray(one)) == (name == "layers.1") for one in added)


def test_units_of_another_model_are_refused(made):
    with pytest.raises(UserError, match="do not fit this text encoder"):
        ramp.with_units(parameters(1, 8), made[-1])
