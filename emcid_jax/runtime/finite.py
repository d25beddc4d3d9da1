"""NaN and infinity are errors that name where they first appear."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Shaped

from emcid_jax.runtime.errors import UserError

FIX = "compute in float32, and check that the parts of the model belong together"


def finite_rows(values: Shaped[Array, "row *shape"]) -> Bool[Array, " row"]:
    """Which entries along the leading axis hold only numbers; inside compiled programs too."""
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))


def require_finite(
    values: Shaped[np.ndarray, "row *shape"], what: str, rows: str = "row"
) -> Shaped[np.ndarray, "row *shape"]:
    """`values`, unchanged.

    Raises:
        UserError: some are NaN or infinite; says `what` they are and which `rows` hold them.

    Example:
        >>> require_finite(np.array([[1.0], [np.nan]]), "text states", "prompt")
        Traceback (most recent call last):
        emcid_jax.runtime.errors.UserError: text states of prompt 1 are not finite; compute in ...
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if bad.size:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(f"{what} of {rows} {bad[0]}{more} are not finite; {FIX}")
    return values
