"""Attention in chunks of queries: the numbers of float64, the memory of one chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.models import attention

CHUNKED = 256 * 20  # 256 queries of 20 keys


def arrays(queries: int, keys: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 3, 5), (2, keys, 3, 5), (2, keys, 3, 5), (2, queries, 3, 5))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def expected(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    logits = np.einsum("bqhd,bkhd->bhqk", query.astype(np.float64), key)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


# At once; two whole chunks; three, of which the last is padded.
@pytest.mark.parametrize("queries", [255, 512, 601])
def test_chunks_change_nothing(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, cotangent = arrays(queries, 20)
    once, pullback = jax.vjp(attention.attend, query, key, value)
    gradients = pullback(jnp.asarray(cotangent))
    monkeypatch.setattr(attention, "SCORES", CHUNKED)
    chunked = "scan" in str(jax.make_jaxpr(attention.attend)(query, key, value))
    assert chunked == (queries * 20 > CHUNKED)
    found, pullback = jax.vjp(attention.attend, query, key, value)
    np.testing.assert_allclose(found, expected(query, key, value), atol=1e-5)
    np.testing.assert_allclose(found, once, atol=1e-6)
    for ours, theirs in zip(pullback(jnp.asarray(cotangent)), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_no_pass_holds_the_scores_of_a_large_image() -> None:
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 40), jnp.float32)

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.square(attention.attend(query, key, value)).sum()

    for function in (attention.attend, jax.grad(total, (0, 1, 2))):
        analysis = jax.jit(function).lower(shape, shape, shape).compile().memory_analysis()
        assert 0 < analysis.temp_size_in_bytes < 2 * 4096**2 * 4  # one matrix of scores
