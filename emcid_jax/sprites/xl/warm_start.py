"""The first sprite model's UNet as a start for the one of SDXL's shape.

Its projections of the text are stitched to the new encoders' states by least squares. Whatever has
no counterpart in it starts so that it adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

Params = dict[str, Any]
_SILENT = ("to_out.0", "net.2", "linear_2")
"""Modules whose output is added to what is there before."""


def stitch(
    states: Sequence[Float[np.ndarray, "token _dim"]],
    wanted: Float[np.ndarray, "token old"],
    empty: Float[np.ndarray, " old"],
) -> Float[np.ndarray, "dims old"]:
    """The linear map of all encoders' states, side by side, to the `wanted` ones less `empty`.

    Every encoder predicts them for itself by least squares; the map is the mean of these
    predictions. So an encoder alone moves what the UNet reads by half, and zeros, SDXL's empty
    prompt, are read as the state `empty`.
    """
    maps = []
    for each in states:
        exact = each.astype(np.float64)
        gram = exact.T @ exact
        gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
        maps.append(np.linalg.solve(gram, exact.T @ (wanted - empty)) / len(states))
    return np.concatenate(maps)


def grow_unet(
    fresh: Params,
    old: Params,
    stitched: Float[np.ndarray, "dims old"],
    empty: Float[np.ndarray, " old"],
) -> Params:
    """`fresh`, with every weight of `old` that has a place in it; `stitched` is of `stitch`.

    Pointwise convolutions become linear layers. A constant added to all keys of an attention
    changes nothing; one added to all values is added to its output.
    """
    source: dict[tuple[str, ...], Any] = flatten_dict(old)
    target: dict[tuple[str, ...], Any] = flatten_dict(fresh)
    grown = {}
    for path, leaf in target.items():
        known = source.get(path)
        if known is None:
            silent = any(name in path for name in _SILENT)
            grown[path] = jnp.zeros_like(leaf) if silent else leaf
        elif path[-3:-1] in (("attn2", "to_k"), ("attn2", "to_v")):
            grown[path] = jnp.asarray(stitched @ known, leaf.dtype)
        elif path[-3:] == ("attn2", "to_out.0", "bias"):
            values, out = (*path[:-2], "to_v", "kernel"), (*path[:-1], "kernel")
            grown[path] = jnp.asarray(known + empty @ source[values] @ source[out], leaf.dtype)
        else:
            grown[path] = jnp.reshape(known, leaf.shape)
    return unflatten_dict(grown)
