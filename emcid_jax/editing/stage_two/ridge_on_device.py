"""Stage II's solve on the accelerator, in float32 refined to what float64 gives on the host.

The system, scaled to a diagonal of ones, is factorised once in float32; then `X += A^-1 (B - A X)`
is repeated with the residual in float64, which devices without float64 units emulate (Higham,
Accuracy and Stability of Numerical Algorithms, chapter 12). A round divides the error by about
10^7 / condition.
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from emcid_jax.editing.moments.factored import Moment, condition_number
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.solver import Solution

ACCURACY = 1e-6
"""Largest relative error of a result that is handed out."""
GOAL = 1e-9
"""Estimated relative error at which refinement stops."""
ROUNDS = 20
"""Most rounds of refinement."""
# Beyond it, directions that float32 cannot see may hide from the estimate of the error.
_MAX_CONDITION = 1 / np.finfo(np.float32).eps


def device_ridge(
    keys: Float64[np.ndarray, "request key"],
    residuals: Float64[np.ndarray, "request out"],
    moment: Moment,
    weights: Float64[np.ndarray, " request"],
    strength: float,
) -> Solution:
    """`ridge.ridge`'s primal form on the default device; a `Solver`.

    `condition` of the result is that of the system with a diagonal of ones. `device_error` is the
    relative error that the device reached, estimated from how fast its corrections shrink (1 where
    that says nothing); above `ACCURACY` the result is the host's, and a warning says so.

    Raises:
        UserError: the system is not positive definite in float64 either.
    """
    root = np.sqrt(weights)[:, None]
    with jax.enable_x64(True):
        found = _refined(keys * root, residuals * root, moment.matrix, strength)
        solution, lower, norm, error = (np.asarray(array) for array in found)
    condition = condition_number(lower, float(norm)) if np.isfinite(lower).all() else float("inf")
    trusted = condition <= _MAX_CONDITION and np.isfinite(error)
    reached = float(error) if trusted else 1.0
    if reached <= ACCURACY:
        return Solution(solution.T, "primal", condition, reached)
    logging.warning(
        "device solve: condition %.1e is too much for float32 (relative error %.1e, wanted %.0e); "
        "solved on the host",
        condition,
        reached,
        ACCURACY,
    )
    return ridge(keys, residuals, moment, weights, strength)._replace(device_error=reached)


@jax.jit
def _refined(
    keys: Float64[Array, "request key"],
    residuals: Float64[Array, "request out"],
    moment: Float64[Array, "key key"],
    strength: Float64[Array, ""],
) -> tuple[
    Float64[Array, "key out"], Float[Array, "key key"], Float64[Array, ""], Float64[Array, ""]
]:
    """Solution, factor and 1-norm of the scaled system, estimated relative error.

    The error left after corrections of sizes s_1, s_2 is the rest of their geometric series,
    `s_2 q / (1 - q)`, q = s_2 / s_1.
    """
    system = keys.T @ keys + strength * moment
    right = keys.T @ residuals
    scale = jax.lax.rsqrt(jnp.diagonal(system))[:, None]
    scaled = scale * system * scale.T
    lower = jax.lax.linalg.cholesky(scaled.astype(jnp.float32))

    def roughly(wanted: Array) -> Array:
        narrow = (scale * wanted).astype(jnp.float32)
        return scale * jax.scipy.linalg.cho_solve((lower, True), narrow)

    def share(part: Array, whole: Array) -> Array:
        return part / jnp.maximum(whole, jnp.finfo(jnp.float64).tiny)  # nothing of nothing: 0

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, _, error, rounds = state
        return (rounds < ROUNDS) & jnp.isfinite(error) & (error > GOAL)

    def refine(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        solution, last, _, rounds = state
        correction = roughly(right - system @ solution)
        solution, change = solution + correction, jnp.linalg.norm(correction)
        ratio = share(change, last)
        left = jnp.where(ratio < 1, change * ratio / (1 - ratio), jnp.inf)
        return solution, change, share(left, jnp.linalg.norm(solution)), rounds + 1

    first = roughly(right)
    state = (first, jnp.linalg.norm(first), jnp.ones((), jnp.float64), jnp.zeros((), jnp.int32))
    solution, _, error, _ = jax.lax.while_loop(unfinished, refine, state)
    return solution, lower, jnp.abs(scaled).sum(axis=0).max(), error
