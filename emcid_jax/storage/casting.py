"""Weights in the type that a file stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from emcid_jax.runtime.errors import UserError


def in_type(array: np.ndarray, dtype: DTypeLike, what: str) -> np.ndarray:
    """`array` as `dtype`, contiguous; UserError, which begins with `what`, if a value is too large.

    >>> in_type(np.array([0.1]), "float16", "model.safetensors: fc2.weight").dtype
    dtype('float16')
    """
    with np.errstate(over="ignore"):  # Said below.
        stored = np.ascontiguousarray(array, dtype)
    if not np.isfinite(stored.astype(np.float32)).all():
        raise UserError(f"{what} does not fit {stored.dtype}; use float32")
    return stored
