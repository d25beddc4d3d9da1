"""Causal tracing against a NumPy encoder that puts parts back prompt by prompt."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.encoder import blockwise, causal_tracing
from emcid_jax.editing.encoder.causal_tracing import Ends, Parts
from emcid_jax.models.text.clip import ClipTextModel

POSITIONS = np.array([2, 4, 3])
ENDS = np.array([4, 7, 4])


class World(NamedTuple):
    model: ClipTextModel
    params: dict[str, Any]
    ids: jax.Array
    positions: jax.Array
    clean: np.ndarray
    """Input of block 0."""
    corrupted: np.ndarray
    ends: Ends
    parts: Parts


@pytest.fixture(scope="module")
def world(numpy_clip: Any) -> World:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, (3, 8))
    for row, end in zip(ids, ENDS, strict=True):
        row[end:] = numpy_clip.config.eos_token_id
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numpy_clip.params)
    model = ClipTextModel(numpy_clip.config)
    places = jnp.asarray(ids, jnp.int32), jnp.asarray(POSITIONS, jnp.int32)
    clean = blockwise.embed(model, params["text_model"]["embeddings"], places[0])
    noise = np.zeros(clean.shape, np.float32)
    for row, position in enumerate(POSITIONS):  # Subjects of two tokens.
        noise[row, position - 1 : position + 1] = 3 * rng.standard_normal((2, 32))
    corrupted = np.asarray(clean + noise)
    ends, parts = causal_tracing.run(model, params, clean, *places)
    return World(model, params, *places, np.asarray(clean), corrupted, ends, parts)


def dense(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def norm(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * params["scale"] + params["bias"]


def by_hand(
    clip: Any, world: World, row: int, site: str, inside: Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Final features at the end and the subject token of one prompt, in float64."""
    blocks = clip.params["text_model"]["encoder"]
    position = POSITIONS[row]
    both = np.stack([world.clean[row], world.corrupted[row]]).astype(np.float64)
    for layer in range(clip.config.num_hidden_layers):
        block = blocks[f"layers.{layer}"]
        attention = clip._attention(norm(both, block["layer_norm1"]), block["self_attn"])
        if site == "attention" and layer in inside:
            attention[1, position] = attention[0, position]
        both = both + attention
        inner = dense(norm(both, block["layer_norm2"]), block["mlp"]["fc1"])
        mlp = dense(inner / (1 + np.exp(-1.702 * inner)), block["mlp"]["fc2"])
        if site == "mlp" and layer in inside:
            mlp[1, position] = mlp[0, position]
        both = both + mlp
        if site == "block" and layer in inside:
            both[1, position] = both[0, position]
    last = norm(both, clip.params["text_model"]["final_layer_norm"])[1]
    return last[ENDS[row]], last[position]


def restored(world: World, site: Any, inside: Collection[int]) -> Ends:
    where = jnp.asarray([layer in inside for layer in range(4)])
    places = world.ids, world.positions
    return causal_tracing.restore(
        world.model, world.params, jnp.asarray(world.corrupted), *places, world.parts, site, where
    )


@pytest.mark.parametrize("site", ["block", "attention", "mlp"])
@pytest.mark.parametrize("inside", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_parts_are_put_back(
    numpy_clip: Any, world: World, site: str, inside: tuple[int, ...]
) -> None:
    found = restored(world, site, inside)
    for row in range(3):
        end, subject = by_hand(numpy_clip, world, row, site, inside)
        np.testing.assert_allclose(found.end[row], end, atol=2e-4)
        np.testing.assert_allclose(found.subject[row], subject, atol=2e-4)
        assert np.abs(end - world.ends.end[row]).max() > 0.05  # A corrupted token is left.


def test_nothing_put_back_is_the_corrupted_run_and_all_the_clean_one(world: World) -> None:
    places = world.ids, world.positions
    corrupted, _ = causal_tracing.run(
        world.model, world.params, jnp.asarray(world.corrupted), *places
    )
    for site in ("block", "attention", "mlp"):
        for found, wanted in zip(restored(world, site, ()), corrupted, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    # A last block put back is the clean final state at that token, and at no other.
    found = restored(world, "block", (3,))
    np.testing.assert_allclose(found.subject, world.ends.subject, atol=1e-5)
    np.testing.assert_allclose(found.end, corrupted.end, atol=1e-5)
    # Where the subject is one token, all before it is clean: any block brings its state back.
    single, rows = world.clean.copy(), np.arange(3)
    single[rows, POSITIONS] = world.corrupted[rows, POSITIONS]
    for layer in range(4):
        found = restored(world._replace(corrupted=single), "block", (layer,))
        np.testing.assert_allclose(found.subject, world.ends.subject, atol=1e-5)
        assert np.abs(found.end - world.ends.end).max() > 1e-3  # Block 0 let the end token read it.


def test_the_parts_add_up_to_the_residual_stream(world: World) -> None:
    at = np.arange(3), POSITIONS
    stream = world.clean[at]
    for layer in range(4):
        stream = stream + world.parts.attention[layer] + world.parts.mlp[layer]
        np.testing.assert_allclose(world.parts.block[layer], stream, atol=1e-4)
    out = world.model.apply({"params": world.params}, world.ids)
    np.testing.assert_allclose(world.ends.end, out.pooled, atol=1e-5)
    np.testing.assert_allclose(world.parts.block[2], out.hidden[2][at], atol=1e-5)
