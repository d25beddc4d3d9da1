"""Attention to many pixels: all at once, in chunks of queries, or head by head. Same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.runtime.parallel import even_chunk, padded_size

SCORES = 2**21
"""About how many scores, queries times keys, exist at once per head."""


FEW_SCORES = 2**14
"""Up to so many per head nothing is gained on a CPU by taking heads one by one."""


CACHED_SCORES = 2**19
"""Up to so many of a head nothing is gained on a CPU by chunks of queries."""


CPU_QUERIES = 512
"""Queries whose scores stay in a core's cache, at 4096 keys."""


def attend(
    query: Float[Array, "batch query head dim"],
    key: Float[Array, "batch key head dim"],
    value: Float[Array, "batch key head dim"],
) -> Float[Array, "batch query head dim"]:
    """`softmax(query key^T) value`, unscaled; softmax and result in float32.

    Accelerators take all heads together and, if there are more than `SCORES` (512-pixel images have
    4096^2 and more), chunks of queries after each other, whose scores a backward pass computes
    again. CPUs take heads one by one as well, from `FEW_SCORES` on.
    """
    scores = query.shape[1] * key.shape[1]
    if scores <= FEW_SCORES:
        return _attend_at_once(query, key, value)
    on_cpu = attend_head_by_head if scores > CACHED_SCORES else attend_heads_apart
    return jax.lax.platform_dependent(query, key, value, cpu=on_cpu, default=attend_together)


def attend_together(
    query: Float[Array, "batch query head dim"],
    key: Float[Array, "batch key head dim"],
    value: Float[Array, "batch key head dim"],
) -> Float[Array, "batch query head dim"]:
    """`attend`, for accelerators: at once or in chunks of queries."""
    count = query.shape[1]
    if count * key.shape[1] <= SCORES:
        return _attend_at_once(query, key, value)
    size = padded_size(SCORES // key.shape[1], 128)  # whole lanes of a TPU
    chunks = -(-count // size)
    padded = jnp.pad(query, ((0, 0), (0, chunks * size - count), (0, 0), (0, 0)))
    rows = jnp.moveaxis(padded.reshape(len(query), chunks, size, *query.shape[2:]), 1, 0)
    found = jax.lax.map(jax.checkpoint(lambda part: _attend_at_once(part, key, value)), rows)
    return jnp.moveaxis(found, 0, 1).reshape(padded.shape)[:, :count]


def attend_heads_apart(
    query: Float[Array, "batch query head dim"],
    key: Float[Array, "batch key head dim"],
    value: Float[Array, "batch key head dim"],
) -> Float[Array, "batch query head dim"]:
    """`attend`, for CPUs and few keys, such as the text's: products of one head each.

    XLA takes twice as long for the same products as one batch, and for their backward pass.
    """

    def one_head(query: Array, key: Array, value: Array) -> Float[Array, "batch query dim"]:
        logits = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return out / weights.sum(-1, keepdims=True)

    heads = range(query.shape[2])
    return jnp.stack([one_head(query[:, :, h], key[:, :, h], value[:, :, h]) for h in heads], 2)


def attend_head_by_head(
    query: Float[Array, "batch query head dim"],
    key: Float[Array, "batch key head dim"],
    value: Float[Array, "batch key head dim"],
) -> Float[Array, "batch query head dim"]:
    """`attend`, for CPUs: what exists at once stays in a core's cache."""
    batch, count, heads, dim = query.shape
    size = even_chunk(count, CPU_QUERIES)
    chunks = -(-count // size)
    padded = jnp.pad(query, ((0, 0), (0, chunks * size - count), (0, 0), (0, 0)))

    def one_head(query: Array, key: Array, value: Array) -> Array:
        # Scores stand as [key, query], so that no product of the backward pass reads a transposed
        # matrix of them: XLA takes three times as long for such a one.
        @jax.checkpoint
        def some(part: Float[Array, "dim query"]) -> Float[Array, "dim query"]:
            logits = jnp.matmul(key, part, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(0)))
            out = jnp.matmul(value, weights.astype(value.dtype), preferred_element_type=jnp.float32)
            return out / weights.sum(0)

        return jax.lax.map(some, query)

    # [batch and head][chunk][dim, query], [key, dim] and [dim, key].
    rows = jnp.moveaxis(padded.reshape(batch, chunks, size, heads, dim), (3, 1, 4), (1, 2, 3))
    queries = rows.reshape(-1, chunks, dim, size)
    keys = jnp.moveaxis(key, 2, 1).reshape(batch * heads, -1, dim)
    values = jnp.moveaxis(value, (2, 3), (1, 2)).reshape(batch * heads, dim, -1)
    found = jax.lax.map(lambda head: one_head(*head), (queries, keys, values))
    found = found.reshape(batch, heads, chunks, dim, size)
    return jnp.moveaxis(found, (2, 4), (1, 2)).reshape(padded.shape)[:, :count]


def _attend_at_once(query: Array, key: Array, value: Array) -> Array:
    # The softmax's division is left to the end, where it touches queries x dim numbers and not
    # queries x keys: a third less CPU time than `jax.nn.dot_product_attention` at 64 pixels.
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return out / weights.sum(-1).swapaxes(1, 2)[..., None]
