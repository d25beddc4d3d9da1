"""What every solver is: keys, residuals and a moment in, a weight change out."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from emcid_jax.editing.moments.factored import Moment

Form = Literal["primal", "dual"]


class Solution(NamedTuple):
    """One layer's weight change."""

    delta: Float64[np.ndarray, "out key"]
    """dW, in the (out, in) layout of the weights on disk."""
    form: Form
    """Which algebraically equal form was computed."""
    condition: float
    """Estimated condition number of the system of that form."""
    device_error: float | None = None
    """Relative error that a device reached, see `ridge_on_device`; None on the host."""


@runtime_checkable
class Solver(Protocol):
    """Anything that turns keys and residuals into a weight change."""

    def __call__(
        self,
        keys: Float64[np.ndarray, "request key"],
        residuals: Float64[np.ndarray, "request out"],
        moment: Moment,
        weights: Float64[np.ndarray, " request"],
        strength: float,
    ) -> Solution:
        """Return `dW` with `dW keys[i] ~ residuals[i]` that keeps `moment`'s keys in place.

        `weights[i]` is how much request i counts, `strength` how much preservation counts
        (lambda_eff).
        """
        ...
