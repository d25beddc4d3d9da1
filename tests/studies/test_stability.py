"""The stability benchmark: its reference is better than what it judges, its errors are errors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.ridge import ridge
from studies.stability import Problem, compare, duplicates, reference, single, singular

INNER, OUT = 24, 5


def problem(requests: int, smallest: float = 1e-2) -> Problem:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((INNER, INNER)))
    scale = np.geomspace(1, smallest, INNER)
    tokens = rng.standard_normal((200, INNER)) * scale @ basis
    keys = rng.standard_normal((requests, INNER)) * scale @ basis
    return Problem(keys, rng.standard_normal((requests, OUT)), Moment(tokens.T @ tokens / 200))


def exactly(problem: Problem, strength: float) -> np.ndarray:
    """dW by Gaussian elimination in rational numbers."""
    keys, residuals, moment = (
        [[Fraction(float(x)) for x in row] for row in matrix]
        for matrix in (problem.keys, problem.residuals, problem.moment.matrix)
    )
    size = range(INNER)
    rows = [
        [Fraction(strength) * moment[i][j] + sum(k[i] * k[j] for k in keys) for j in size]
        + [sum(k[i] * r[o] for k, r in zip(keys, residuals, strict=True)) for o in range(OUT)]
        for i in size
    ]
    for pivot in size:
        head = rows[pivot] = [x / rows[pivot][pivot] for x in rows[pivot]]
        for row in size:
            if row != pivot:
                factor = rows[row][pivot]
                rows[row] = [x - factor * h for x, h in zip(rows[row], head, strict=True)]
    return np.array([[float(x) for x in row[INNER:]] for row in rows]).T


@pytest.mark.parametrize("requests", [6, 30])
@pytest.mark.parametrize("strength", [1.0, 2.0**-20])
def test_figures_against_rational_arithmetic(requests: int, strength: float) -> None:
    part = problem(requests)
    exact = exactly(part, strength)

    def error(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    host = ridge(*part, np.ones(requests), strength).delta
    found = reference(part, strength, host)
    assert error(found) <= 1e-14
    figures = compare(part, strength)
    np.testing.assert_allclose(figures.double, error(host), rtol=0.1, atol=2e-15)
    np.testing.assert_allclose(figures.single, error(single(part, strength)), rtol=1e-3)
    assert figures.refined < 1e-6
    assert not figures.single <= 1e-6  # NaN where float32 has no Cholesky factor
    left = part.residuals - part.keys @ exact.T
    assert figures.left == pytest.approx(np.linalg.norm(left) / np.linalg.norm(part.residuals))


def test_a_key_given_twice_gets_the_mean() -> None:
    condition, distance = duplicates(problem(6), 1e-6)
    assert distance < 1e-2
    assert condition > 1e4


def test_singular_systems_say_what_to_do() -> None:
    messages = dict(singular(problem(6)))
    assert "more captions" in messages["second moments of 5 tokens"]
    assert "larger one" in messages["null space of energy 0"]
