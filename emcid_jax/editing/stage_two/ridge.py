"""Linear solvers of Stage II: keys, residuals and a second moment in, one weight change out.

Every solver is a function of the `Solver` type, so that editing methods differ in nothing else.
Arrays are host float64 with one row per request (the transpose of the papers' columns).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from emcid_jax.runtime.errors import UserError

Form = Literal["primal", "dual"]


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """The uncentred second moment `C` of one layer's keys, and its Cholesky factor once needed.

    Keep the object between solves: the factor depends on `C` alone, so adding or removing
    requests (the bank changes, the moment does not) never factorises `C` again.
    """

    matrix: Float64[np.ndarray, "key key"]

    @functools.cached_property
    def factor(self) -> Factor:
        """Cholesky factor of `C`. Raises `UserError` if `C` is not positive definite."""
        return cholesky(self.matrix)


class Factor(NamedTuple):
    """A lower Cholesky factor and what it says about the matrix."""

    lower: Float64[np.ndarray, "size size"]
    """`L` of `A = L L^T`; the upper triangle is not meaningful."""
    condition: float
    """LAPACK's estimate of the 1-norm condition number of `A`, O(size^2) given `L`."""

    def solve(
        self, right: Float64[np.ndarray, "size column"]
    ) -> Float64[np.ndarray, "size column"]:
        """`A^-1 right`."""
        return scipy.linalg.cho_solve((self.lower, True), right, check_finite=False)

    def whiten(
        self, right: Float64[np.ndarray, "size column"], *, transposed: bool = False
    ) -> Float64[np.ndarray, "size column"]:
        """`L^-1 right`, or `L^-T right`."""
        return scipy.linalg.solve_triangular(
            self.lower, right, lower=True, trans=int(transposed), check_finite=False
        )


class Solution(NamedTuple):
    """One layer's weight change."""

    delta: Float64[np.ndarray, "out key"]
    """dW, in the (out, in) layout of the weights on disk."""
    form: Form
    """Which algebraically equal form was computed."""
    condition: float
    """Estimated condition number of the system of that form."""
    device_error: float | None = None
    """Relative error that a device reached, see `device_solver`; None if none was asked."""


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


def cholesky(matrix: Float64[np.ndarray, "size size"], ridge: float = 0.0) -> Factor:
    """Factorise the symmetric `matrix + ridge I`.

    Raises:
        UserError: the matrix is not positive definite in float64.
    """
    size = matrix.shape[0]
    # Fortran order is what LAPACK factorises in place; for a symmetric matrix it is the transpose.
    work = np.array(matrix.T, order="F")
    work[np.diag_indices(size)] += ridge
    norm = float(np.abs(work).sum(axis=0).max())
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (work,))
    lower, info = potrf(work, lower=True, overwrite_a=True, clean=False)
    if info > 0:
        raise UserError(
            f"the {size} x {size} system is not positive definite (pivot {info}); use second "
            "moments of more captions or a larger moment_weight"
        )
    return Factor(lower, condition_number(lower, norm))


def condition_number(lower: Float[np.ndarray, "size size"], norm: float) -> float:
    """LAPACK's estimate of the 1-norm condition of `lower lower^T`, whose 1-norm is `norm`."""
    (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (lower,))
    reciprocal, _ = pocon(lower, norm, uplo="L")
    return 1.0 / reciprocal if reciprocal > 0 else float("inf")
