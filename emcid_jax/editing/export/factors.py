"""A change dW of low rank as two factors, dW = up @ down, where that is smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

ACCURACY = 2.0**-22
"""Largest relative Frobenius error of factors: that of rounding to float32 is 2^-25 to 2^-24."""

_ENERGY = 2.0**-46
"""Share of |dW|^2 that factors may leave out: (ACCURACY / 2)^2."""


def split(
    delta: Float64[np.ndarray, "out inner"], name: str
) -> dict[str, Float[np.ndarray, "_ _"]] | None:
    """`NAME.up` and `NAME.down` of balanced norms, or None if no smaller than `delta`."""
    # Eigenvectors of dW dW^T: several times faster than an SVD, and the part they leave out is
    # measured on dW itself.
    energies, vectors = np.linalg.eigh(delta @ delta.T)
    energies = np.maximum(energies, 0.0)
    dropped = int(np.searchsorted(np.cumsum(energies), _ENERGY * energies.sum(), "right"))
    rank = max(delta.shape[0] - dropped, 1)
    if rank * sum(delta.shape) >= delta.size:
        return None
    up = vectors[:, -rank:]
    scale = np.sqrt(np.sqrt(np.maximum(energies[-rank:], np.finfo(np.float32).tiny)))
    return {
        f"{name}.up": np.ascontiguousarray(up * scale, np.float32),
        f"{name}.down": np.ascontiguousarray((up.T @ delta) / scale[:, None], np.float32),
    }


def restored(
    arrays: Mapping[str, Float[np.ndarray, "_ _"]], name: str
) -> Float64[np.ndarray, "out inner"]:
    """The change stored as `name`, whole or in factors."""
    if name in arrays:
        return arrays[name].astype(np.float64)
    return arrays[f"{name}.up"].astype(np.float64) @ arrays[f"{name}.down"].astype(np.float64)


class Svd(NamedTuple):
    """dW = left @ diag(values) @ right, values descending."""

    left: Float64[np.ndarray, "out rank"]
    values: Float64[np.ndarray, " rank"]
    right: Float64[np.ndarray, "rank inner"]


def svd(arrays: Mapping[str, Float[np.ndarray, "_ _"]], name: str) -> Svd:
    """Singular values and vectors of the change stored as `name`.

    Of two factors those of a small matrix: with up = Q R and down^T = P S, dW = Q (R S^T) P^T.
    """
    if name in arrays:
        return Svd(*scipy.linalg.svd(restored(arrays, name), full_matrices=False))
    up, down = (arrays[f"{name}.{part}"].astype(np.float64) for part in ("up", "down"))
    (basis, upper), (others, lower) = np.linalg.qr(up), np.linalg.qr(down.T)
    left, values, right = scipy.linalg.svd(upper @ lower.T, full_matrices=False)
    return Svd(basis @ left, values, right @ others.T)


def error(
    arrays: Mapping[str, Float[np.ndarray, "_ _"]],
    name: str,
    exact: Float64[np.ndarray, "out inner"],
) -> float:
    """|stored - dW| / |dW| (Frobenius); 0 of no change."""
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(restored(arrays, name) - exact)) / norm if norm else 0.0
