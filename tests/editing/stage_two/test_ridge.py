"""Solvers against the formula as written, in NumPy float64."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from emcid_jax.editing.moments.factored import Moment, cholesky
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.ridge_on_device import ACCURACY, device_ridge
from emcid_jax.runtime.errors import UserError

INNER, OUT = 40, 12


def problem(requests: int, seed: int = 0, smallest: float = 1e-2):
    """Keys and a moment with the uneven spectrum that real keys have."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1, smallest, INNER)
    tokens = rng.standard_normal((5 * INNER, INNER)) * scale
    keys = rng.standard_normal((requests, INNER)) * scale
    residuals = rng.standard_normal((requests, OUT))
    weights = rng.uniform(0.3, 3, requests)
    return keys, residuals, Moment(tokens.T @ tokens / len(tokens)), weights


def plain(keys, residuals, moment, weights, strength) -> np.ndarray:
    """The formula as written, columns per request, one LU solve."""
    K, R = keys.T * np.sqrt(weights), residuals.T * np.sqrt(weights)
    return np.linalg.solve(strength * moment.matrix + K @ K.T, K @ R.T).T


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("requests", "form"), [(1, "dual"), (7, "dual"), (39, "dual"), (40, "primal"), (90, "primal")]
)
@pytest.mark.parametrize("strength", [1e-3, 1.0, 4000.0])
def test_both_forms_equal_the_plain_solve(requests, form, strength):
    arguments = (*problem(requests), strength)
    solution = ridge(*arguments)
    assert solution.form == form
    assert relative(solution.delta, plain(*arguments)) < 1e-9


@pytest.mark.parametrize("requests", [7, 90])
def test_is_the_minimum_of_the_objective(requests):
    """Gradient of sum w |dW k - r|^2 + strength tr(dW C dW^T) vanishes."""
    keys, residuals, moment, weights = problem(requests)
    delta = ridge(keys, residuals, moment, weights, 2.5).delta
    misfit = (keys @ delta.T - residuals) * weights[:, None]
    gradient = misfit.T @ keys + 2.5 * delta @ moment.matrix
    assert np.linalg.norm(gradient) < 1e-10 * np.linalg.norm(
        (residuals * weights[:, None]).T @ keys
    )


def test_strength_to_zero_interpolates():
    """With fewer requests than key dimensions every residual is met, at least cost in C."""
    keys, residuals, moment, weights = problem(7)
    delta = ridge(keys, residuals, moment, weights, 1e-12).delta
    np.testing.assert_allclose(keys @ delta.T, residuals, rtol=0, atol=1e-8)
    inverse = np.linalg.inv(moment.matrix)
    least = residuals.T @ np.linalg.solve(keys @ inverse @ keys.T, keys @ inverse)
    assert relative(delta, least) < 1e-7


def test_strength_to_zero_with_many_requests_is_least_squares():
    keys, residuals, moment, weights = problem(90)
    delta = ridge(keys, residuals, moment, np.ones_like(weights), 1e-12).delta
    expected = np.linalg.lstsq(keys, residuals, rcond=None)[0].T
    assert relative(delta, expected) < 1e-8


def test_large_strength_writes_nothing():
    keys, residuals, moment, weights = problem(7)
    small = ridge(keys, residuals, moment, weights, 1e12).delta
    assert np.linalg.norm(small) < 1e-6 * np.linalg.norm(
        ridge(keys, residuals, moment, weights, 1.0).delta
    )


@pytest.mark.parametrize("requests", [7, 90])
def test_weight_two_is_the_same_request_twice(requests):
    keys, residuals, moment, _ = problem(requests)
    weights = np.ones(requests)
    weights[2] = 2
    twice = np.r_[np.arange(requests), 2]
    weighted = ridge(keys, residuals, moment, weights, 3.0).delta
    repeated = ridge(keys[twice], residuals[twice], moment, np.ones(requests + 1), 3.0).delta
    assert relative(weighted, repeated) < 1e-10


@pytest.mark.parametrize("strength", [1.0, 1e-6])
def test_duplicate_keys_are_averaged(strength):
    """The same key with two residuals gets their mean, however small the strength."""
    keys, residuals, moment, weights = problem(6)
    keys[3] = keys[1]
    residuals_mean = residuals.copy()
    residuals_mean[[1, 3]] = residuals[[1, 3]].mean(axis=0)
    ones = np.ones_like(weights)
    two = ridge(keys, residuals, moment, ones, strength).delta
    mean = ridge(keys, residuals_mean, moment, ones, strength).delta
    assert relative(two, mean) < 1e-6
    if strength < 1e-5:
        np.testing.assert_allclose(two @ keys[1], residuals_mean[1], atol=1e-3)


def test_order_of_requests_does_not_matter():
    keys, residuals, moment, weights = problem(20)
    order = np.random.default_rng(1).permutation(20)
    first = ridge(keys, residuals, moment, weights, 3.0).delta
    second = ridge(keys[order], residuals[order], moment, weights[order], 3.0).delta
    assert relative(first, second) < 1e-12


def test_zero_residuals_give_exactly_zero():
    keys, residuals, moment, weights = problem(7)
    assert not ridge(keys, 0 * residuals, moment, weights, 3.0).delta.any()


def test_condition_estimate_is_of_the_right_size():
    """LAPACK's estimate is a lower bound of the 1-norm condition number, nearly always close."""
    matrix = problem(7)[2].matrix
    exact = np.linalg.cond(matrix + 1e-3 * np.eye(INNER), 1)
    estimate = cholesky(matrix, 1e-3).condition
    assert exact / 3 < estimate < exact * 1.001
    np.testing.assert_allclose(cholesky(4 * np.eye(3)).condition, 1)


def test_moments_are_not_changed():
    keys, residuals, moment, weights = problem(90)
    before = moment.matrix.copy()
    ridge(keys, residuals, moment, weights, 3.0)
    ridge(keys[:5], residuals[:5], moment, weights[:5], 3.0)
    np.testing.assert_array_equal(moment.matrix, before)


@pytest.mark.parametrize("requests", [7, 90])
def test_singular_systems_are_refused(requests):
    keys, residuals, _, weights = problem(requests)
    keys[:, 3] = 0
    moment = Moment(np.diag(np.arange(INNER) != 3).astype(float))
    with pytest.raises(UserError, match="not positive definite"):
        ridge(keys, residuals, moment, weights, 1.0)


def turned(requests: int, seed: int = 0, smallest: float = 1e-2):
    """`problem` in a random basis: no scaling of its rows makes it easy."""
    keys, residuals, moment, weights = problem(requests, seed, smallest)
    basis, _ = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((INNER, INNER)))
    return keys @ basis, residuals, Moment(basis.T @ moment.matrix @ basis), weights


@pytest.mark.parametrize("requests", [7, 90])
@pytest.mark.parametrize("strength", [0.5, 4000.0])
def test_device_solve_reaches_float64(requests, strength, caplog):
    keys, residuals, moment, weights = arguments = turned(requests)
    wanted = plain(*arguments, strength)
    solution = device_ridge(*arguments, strength)
    assert relative(solution.delta, wanted) <= 1e-8
    assert solution.device_error <= 1e-8
    assert not caplog.records

    system, right = strength * moment.matrix + keys.T * weights @ keys, keys.T * weights @ residuals
    scale = 1 / np.sqrt(np.diag(system))
    exact = np.linalg.cond(scale[:, None] * system * scale, 1)
    assert exact / 3 < solution.condition < exact * 1.1
    # Float32 alone does not get there, so there was something to refine.
    narrow = np.linalg.solve(system.astype(np.float32), right.astype(np.float32)).T
    assert relative(narrow, wanted) > 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_device_solve_says_when_it_does_not(seed, caplog):
    """From easy to hopeless: within 1e-6, or the host's result with a warning and the figure."""
    reached = []
    for smallest in 10.0 ** -np.arange(1, 6):  # conditions from 1e3 to 1e11
        caplog.clear()
        arguments = (*turned(90, seed, smallest), 1.0)
        solution, host = device_ridge(*arguments), ridge(*arguments)
        reached.append(solution.device_error <= ACCURACY)
        if reached[-1]:
            assert not caplog.records
            assert relative(solution.delta, host.delta) <= 1e-6
        else:
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            np.testing.assert_array_equal(solution.delta, host.delta)
    assert reached[:2] == [True, True]
    assert reached[3:] == [False, False]


def test_device_solve_does_not_mind_uneven_scales():
    arguments = (*problem(90, smallest=1e-5), 1.0)
    solution = device_ridge(*arguments)
    assert solution.device_error <= 1e-8
    assert relative(solution.delta, ridge(*arguments).delta) <= 1e-6


def test_device_solve_of_nothing_is_exactly_zero():
    keys, residuals, moment, weights = problem(7)
    solution = device_ridge(keys, 0 * residuals, moment, weights, 3.0)
    assert not solution.delta.any()
    assert solution.device_error == 0


def test_device_solve_refuses_singular_systems():
    keys, residuals, _, weights = problem(90)
    keys[:, 3] = 0
    moment = Moment(np.diag(np.arange(INNER) != 3).astype(float))
    with pytest.raises(UserError, match="not positive definite"):
        device_ridge(keys, residuals, moment, weights, 1.0)
