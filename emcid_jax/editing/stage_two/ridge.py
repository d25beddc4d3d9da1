"""Linear solvers of Stage II: keys, residuals and a second moment in, one weight change out.

Every solver is a function of the `Solver` type, so that editing methods differ in nothing else.
Arrays are host float64 with one row per request (the transpose of the papers' columns).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from emcid_jax.editing.moments.factored import Moment, cholesky
from emcid_jax.editing.stage_two.solver import Solution


def ridge(
    keys: Float64[np.ndarray, "request key"],
    residuals: Float64[np.ndarray, "request out"],
    moment: Moment,
    weights: Float64[np.ndarray, " request"],
    strength: float,
) -> Solution:
    """Regularised least squares, the closed form of MEMIT and EMCID.

    Minimises `sum_i w_i |dW k_i - r_i|^2 + strength tr(dW C dW^T)`:

        dW = R W K^T (strength C + K W K^T)^-1                              (primal, key x key)
           = R' (strength I + K'^T C^-1 K')^-1 K'^T C^-1,  K' = K sqrt(W)   (dual, by Woodbury)

    The dual form is taken when there are fewer requests than key dimensions: it factorises a
    request x request matrix, reuses the Cholesky factor of C, and stays well posed as `strength`
    goes to 0, where it interpolates.

    Raises:
        UserError: the system (or C, in the dual form) is not positive definite.
    """
    root = np.sqrt(weights)[:, None]
    keys, residuals = keys * root, residuals * root
    if keys.shape[0] < keys.shape[1]:
        white = moment.factor.whiten(keys.T)
        system = cholesky(white.T @ white, strength)
        mixed = white @ system.solve(residuals)
        delta = moment.factor.whiten(mixed, transposed=True).T
        return Solution(delta, "dual", system.condition)
    system = cholesky(keys.T @ keys + strength * moment.matrix)
    return Solution(system.solve(keys.T @ residuals).T, "primal", system.condition)
