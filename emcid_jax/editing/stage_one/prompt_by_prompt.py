"""A sum over prompts whose terms and gradients are computed one prompt after another.

Programs then hold the activations of one prompt per concept at a time. Nothing is computed twice:
each prompt's gradient is taken right behind its value, and kept in place of its activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def prompt_by_prompt(
    values: Callable[[Any, Any], Float[Array, " concept"]], read: Any, fixed: Any, prompts: int
) -> Float[Array, " row"]:
    """`values(read, fixed)` of all rows, differentiable with respect to `read` alone.

    Args:
        values: of the rows of one prompt of all concepts; a row's value depends on that row only.
        read: tree of arrays with leading axis row, which is concept times prompt.
        fixed: the same.
        prompts: of each concept.
    """
    others = _by_prompt(fixed, prompts)

    @jax.custom_vjp
    def of(read: Any) -> Array:
        return jax.lax.map(lambda part: values(*part), (read, others))

    def forward(read: Any) -> tuple[Array, Any]:
        def one(part: tuple[Any, Any]) -> tuple[Array, Any]:
            found, backward = jax.vjp(lambda rows: values(rows, part[1]), part[0])
            return found, backward(jnp.ones_like(found))[0]

        return jax.lax.map(one, (read, others))

    def backward(gradients: Any, wanted: Array) -> tuple[Any]:
        def scaled(leaf: Array) -> Array:
            return leaf * wanted.reshape(*wanted.shape, *[1] * (leaf.ndim - 2)).astype(leaf.dtype)

        return (jax.tree.map(scaled, gradients),)

    of.defvjp(forward, backward)
    return of(_by_prompt(read, prompts)).T.reshape(-1)


def _by_prompt(tree: Any, prompts: int) -> Any:
    """Rows as (prompt, concept): concepts stay on their devices."""

    def one(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(-1, prompts, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(one, tree)
