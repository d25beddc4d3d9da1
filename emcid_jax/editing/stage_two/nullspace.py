"""Stage II within the directions that captions leave free: a `Solver` that writes nowhere else.

The weight change is `dW = A U^T`: rows of `U^T` are orthonormal, orthogonal to every key that is
to be held exactly, and carry the least of the second moment. In these coordinates it is the ridge
problem again, so host and device solve it as they solve that one. AlphaEdit (arXiv 2410.02355)
and SPEED (arXiv 2503.07392) project an update of the same form; they weigh free directions alike,
we keep the second moment's weights there.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.solver import Solution, Solver
from emcid_jax.runtime.errors import UserError

# Keys are float32: what is smaller than their rounding is no direction.
_RANK = float(np.finfo(np.float32).eps)


def nullspace(
    keys: Float64[np.ndarray, "request key"],
    residuals: Float64[np.ndarray, "request out"],
    moment: Moment,
    weights: Float64[np.ndarray, " request"],
    strength: float,
    *,
    held: Float[np.ndarray, "held key"],
    energy: float,
    within: Solver = ridge,
) -> Solution:
    """`within`'s solution among those with `dW = dW U U^T`, `U = free_directions(...)`.

    So `dW held[i] = 0` for every i, and with `ridge` it is the minimum of

        sum_i w_i |dW k_i - r_i|^2 + strength tr(dW C dW^T)    subject to    dW = dW U U^T.

    Args:
        keys: see `ridge.Solver`.
        residuals: the same.
        moment: the same.
        weights: the same.
        strength: the same.
        held: keys whose outputs must not change at all.
        energy: see `free_directions`.
        within: solves the problem in the coordinates of `U`.

    Raises:
        UserError: no direction is free, or the system is singular.
    """
    free = free_directions(moment.matrix, held, energy)
    reduced = Moment(free.T @ moment.matrix @ free)
    solution = within(keys @ free, residuals, reduced, weights, strength)
    return solution._replace(delta=solution.delta @ free.T)


def free_directions(
    moment: Float64[np.ndarray, "key key"], held: Float[np.ndarray, "held key"], energy: float
) -> Float64[np.ndarray, "key free"]:
    """Orthonormal columns, orthogonal to `held`, with at most `energy` of the moment's trace.

    The trace is that of the moment without the held directions: the start token's key alone, which
    every caption has, would hold most of it otherwise. Directions are the eigenvectors of the
    rest, the smallest eigenvalues first; `energy` 1 takes all of them.

    Raises:
        UserError: not even one direction carries as little.
    """
    left, sizes, _ = np.linalg.svd(np.asarray(held, np.float64).T)
    outside = left[:, int((sizes > _RANK * sizes[0]).sum()) :]
    energies, vectors = scipy.linalg.eigh(outside.T @ moment @ outside)
    carried = np.cumsum(np.maximum(energies, 0.0))
    free = int(np.searchsorted(carried, energy * carried[-1], "right")) if len(carried) else 0
    if not free:
        raise UserError(
            f"stage_two.nullspace_energy is {energy:g}, at which no direction of "
            f"{len(moment)} is free; give a larger one"
        )
    return outside @ vectors[:, :free]
