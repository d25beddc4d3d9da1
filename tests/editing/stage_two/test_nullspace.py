"""The null-space solver against the constrained problem's optimality conditions, in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.nullspace import free_directions, nullspace
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.ridge_on_device import device_ridge
from emcid_jax.runtime.errors import UserError

INNER, OUT, HELD = 40, 12, 5


def problem(requests: int, seed: int = 0):
    """Keys, residuals, moment, weights in a random basis, and held keys of rank 4."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((INNER, INNER)))
    scale = np.geomspace(1, 1e-2, INNER)
    held = (rng.standard_normal((HELD, INNER)) + 3 * rng.standard_normal(INNER)) * scale @ basis
    held[-1] = held[0] - 2 * held[1]
    tokens = np.concatenate(
        [rng.standard_normal((5 * INNER, INNER)) * scale @ basis, np.repeat(held, 10, axis=0)]
    )
    keys = rng.standard_normal((requests, INNER)) * scale @ basis
    residuals = rng.standard_normal((requests, OUT))
    weights = rng.uniform(0.3, 3, requests)
    return (keys, residuals, Moment(tokens.T @ tokens / len(tokens)), weights), held


def forbidden(moment: np.ndarray, held: np.ndarray, energy: float) -> np.ndarray:
    """Columns that dW has to be orthogonal to, found by projectors and a plain loop."""
    outside = np.eye(INNER) - np.linalg.pinv(held) @ held
    values, vectors = np.linalg.eigh(outside @ moment @ outside)
    rank = np.linalg.matrix_rank(held)
    values, vectors = values[rank:], vectors[:, rank:]  # The held directions have value 0.
    free = 0
    while free < len(values) and values[: free + 1].sum() <= energy * values.sum():
        free += 1
    return np.concatenate([np.linalg.svd(held)[2][:rank].T, vectors[:, free:]], axis=1)


def by_kkt(keys, residuals, moment, weights, strength, held, energy) -> np.ndarray:
    """Stationarity and constraints as one linear system, solved by LU."""
    walls = forbidden(moment.matrix, held, energy)
    count = walls.shape[1]
    system = np.block(
        [
            [keys.T * weights @ keys + strength * moment.matrix, walls],
            [walls.T, np.zeros((count, count))],
        ]
    )
    right = np.concatenate([keys.T * weights @ residuals, np.zeros((count, OUT))])
    return np.linalg.solve(system, right)[:INNER].T


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("requests", [1, 7, 90])
@pytest.mark.parametrize("energy", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_solves_the_constrained_problem(requests, energy, strength):
    arguments, held = problem(requests)
    delta = nullspace(*arguments, strength, held=held, energy=energy).delta
    assert relative(delta, by_kkt(*arguments, strength, held, energy)) < 1e-8
    norms = np.linalg.norm(delta, 2) * np.linalg.norm(held, axis=1)
    assert (np.linalg.norm(delta @ held.T, axis=0) < 1e-12 * norms).all()


@pytest.mark.parametrize("energy", [0.01, 0.2, 1.0])
def test_directions_carry_what_they_may(energy):
    """Orthonormal, off the held keys, within the energy, and with one more beyond it."""
    (_, _, moment, _), held = problem(1)
    free = free_directions(moment.matrix, held, energy)
    np.testing.assert_allclose(free.T @ free, np.eye(free.shape[1]), atol=1e-12)
    np.testing.assert_allclose(held @ free, 0, atol=1e-12)
    assert free.shape[1] == INNER - forbidden(moment.matrix, held, energy).shape[1]
    everything = free_directions(moment.matrix, held, 1.0)
    assert everything.shape[1] == INNER - 4

    def carried(basis):
        return np.trace(basis.T @ moment.matrix @ basis)

    assert carried(free) <= energy * carried(everything) * (1 + 1e-12)


def test_nothing_held_and_all_energy_is_ridge():
    arguments, _ = problem(7)
    held = np.zeros((1, INNER))
    delta = nullspace(*arguments, 2.0, held=held, energy=1.0).delta
    assert relative(delta, ridge(*arguments, 2.0).delta) < 1e-10


def test_on_the_device():
    arguments, held = problem(90)
    settings = {"held": held, "energy": 0.2}
    solution = nullspace(*arguments, 2.0, **settings, within=device_ridge)
    assert solution.device_error is not None
    assert solution.device_error < 1e-8
    assert relative(solution.delta, nullspace(*arguments, 2.0, **settings).delta) < 1e-8


def test_no_free_direction_is_an_error():
    arguments, held = problem(7)
    with pytest.raises(UserError, match="nullspace_energy is 0, at which no direction of 40"):
        nullspace(*arguments, 1.0, held=held, energy=0.0)
    with pytest.raises(UserError, match="no direction"):
        nullspace(*arguments, 1.0, held=np.eye(INNER), energy=1.0)
    solve = functools.partial(nullspace, held=held, energy=1e-9)
    with pytest.raises(UserError, match="larger"):
        solve(*arguments, 1.0)
