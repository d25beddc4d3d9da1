"""Attention in chunks, and head by head: the numbers of float64, the memory of one chunk."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.models.kernels import attention

CHUNKED = 256 * 20  # 256 queries of 20 keys
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def arrays(queries: int, keys: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 3, 5), (2, keys, 3, 5), (2, keys, 3, 5), (2, queries, 3, 5))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def expected(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    logits = np.einsum("bqhd,bkhd->bhqk", query.astype(np.float64), key)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


def check(attend: Attend, queries: int, chunked: bool) -> None:
    """Values against float64, gradients against those of all scores at once."""
    query, key, value, cotangent = arrays(queries, 20)
    once, pullback = jax.vjp(attention.attend, query, key, value)
    gradients = pullback(jnp.asarray(cotangent))
    assert ("scan" in str(jax.make_jaxpr(attend)(query, key, value))) == chunked
    found, pullback = jax.vjp(attend, query, key, value)
    np.testing.assert_allclose(found, expected(query, key, value), atol=1e-5)
    np.testing.assert_allclose(found, once, atol=1e-6)
    for ours, theirs in zip(pullback(jnp.asarray(cotangent)), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


# At once; two whole chunks; three, of which the last is padded.
@pytest.mark.parametrize("queries", [255, 512, 601])
def test_chunks_change_nothing(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES", CHUNKED)
    check(attention.attend_together, queries, chunked=queries * 20 > CHUNKED)


# A chunk; three whole chunks; three, of which the last is padded.
@pytest.mark.parametrize("queries", [255, 600, 601])
def test_heads_one_by_one_change_nothing(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CPU_QUERIES", 256)
    check(attention.attend_head_by_head, queries, chunked=True)


def test_heads_apart_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, cotangent = arrays(30, 20)
    assert "platform_index" not in str(jax.make_jaxpr(attention.attend)(query, key, value))
    once, pullback = jax.vjp(attention.attend, query, key, value)
    gradients = pullback(jnp.asarray(cotangent))
    monkeypatch.setattr(attention, "FEW_SCORES", 30 * 20 - 1)
    found, pullback = jax.vjp(attention.attend, query, key, value)
    np.testing.assert_allclose(found, expected(query, key, value), atol=1e-5)
    np.testing.assert_allclose(found, once, atol=1e-6)
    for ours, theirs in zip(pullback(jnp.asarray(cotangent)), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # Three products of one head each in place of one batch of three.
    products = [
        str(jax.make_jaxpr(attend)(query, key, value)).count("dot_general")
        for attend in (attention.attend_heads_apart, attention.attend_together)
    ]
    assert products == [6, 2]


def test_cpus_take_heads_one_by_one_where_there_are_many_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key, value, _ = arrays(601, 20)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)]
    few = jax.jit(attention.attend).lower(*shapes).as_text()
    assert "while" not in few
    monkeypatch.setattr(attention, "FEW_SCORES", CHUNKED)
    monkeypatch.setattr(attention, "CACHED_SCORES", CHUNKED)
    many = jax.jit(lambda *x: attention.attend(*x))
    assert "while" in many.lower(*shapes).as_text()
    np.testing.assert_allclose(many(query, key, value), expected(query, key, value), atol=1e-5)
    exported = jax.export.export(many, platforms=["tpu"])(*shapes)
    assert "while" not in exported.mlir_module()


@pytest.mark.parametrize("attend", [attention.attend_together, attention.attend_head_by_head])
def test_no_pass_holds_the_scores_of_a_large_image(attend: Attend) -> None:
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 40), jnp.float32)

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.square(attend(query, key, value)).sum()

    for function in (attend, jax.grad(total, (0, 1, 2))):
        analysis = jax.jit(function).lower(shape, shape, shape).compile().memory_analysis()
        assert 0 < analysis.temp_size_in_bytes < 2 * 4096**2 * 4  # one matrix of scores
