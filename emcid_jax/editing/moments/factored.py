"""A second moment with its Cholesky factor, found once and used for every solve."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from emcid_jax.runtime.errors import UserError


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


def cholesky(matrix: Float64[np.ndarray, "size size"], shift: float = 0.0) -> Factor:
    """Factorise the symmetric `matrix + shift I`.

    Raises:
        UserError: the matrix is not positive definite in float64.
    """
    size = matrix.shape[0]
    # Fortran order is what LAPACK factorises in place; for a symmetric matrix it is the transpose.
    work = np.array(matrix.T, order="F")
    work[np.diag_indices(size)] += shift
    norm = float(np.abs(work).sum(axis=0).max())
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (work,))
    lower, info = potrf(work, lower=True, overwrite_a=True, clean=False)
    if info > 0:
        raise UserError(
            f"the {size} x {size} system is not positive definite (pivot {info}); use second "
            "moments of more captions or a larger preservation_weight"
        )
    return Factor(lower, condition_number(lower, norm))


def condition_number(lower: Float[np.ndarray, "size size"], norm: float) -> float:
    """LAPACK's estimate of the 1-norm condition of `lower lower^T`, whose 1-norm is `norm`."""
    (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (lower,))
    reciprocal, _ = pocon(lower, norm, uplo="L")
    return 1.0 / reciprocal if reciprocal > 0 else float("inf")
