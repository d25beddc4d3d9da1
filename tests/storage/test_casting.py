"""Weights in a stored type: the nearest values of it, in one order in memory, or a refusal."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.casting import in_type


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_value_is_the_nearest_one_of_its_type(dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=(30, 20)).T
    stored = in_type(values, dtype, "a file")
    assert stored.dtype == dtype
    assert stored.flags.c_contiguous
    spacing = np.abs(values) * float(ml_dtypes.finfo(dtype).eps)
    assert np.all(np.abs(stored.astype(np.float64) - values) <= spacing / 2 + 1e-9)


def test_a_value_that_is_too_large_is_refused_and_a_nan_too() -> None:
    assert in_type(np.array([65_504.0]), "float16", "a file")[0] == 65_504
    for value in (1e6, np.inf, np.nan):
        with pytest.raises(UserError, match=r"a file: fc2 does not fit float16; use float32"):
            in_type(np.array([0.0, value]), "float16", "a file: fc2")
