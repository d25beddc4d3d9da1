"""What is not a number is named."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.finite import finite_rows, require_finite


def test_the_first_bad_row_is_named() -> None:
    values = np.zeros((4, 2, 3), np.float32)
    assert require_finite(values, "states", "prompt") is values
    values[1, 0, 2], values[3] = np.inf, np.nan
    with pytest.raises(UserError, match=r"^states of prompt 1 and 1 more are not finite; compute"):
        require_finite(values, "states", "prompt")
    np.testing.assert_array_equal(finite_rows(jnp.asarray(values)), [True, False, True, False])


def test_nothing_is_finite() -> None:
    require_finite(np.zeros((0, 3)), "states")
