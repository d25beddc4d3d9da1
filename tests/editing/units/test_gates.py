"""Gates against NumPy's own solve, a general optimiser, and themselves in other company."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

from emcid_jax.editing.units import gates
from emcid_jax.editing.units.statistics import UnitStatistics

DIM, NAMES, CONTEXTS, OTHERS = 12, 7, 6, 9


@pytest.fixture(scope="module")
def statistics() -> UnitStatistics:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(DIM, DIM))
    noise = rng.normal(size=(DIM, DIM)) / 5
    return UnitStatistics(
        0,
        "hash",
        10,
        rng.normal(size=DIM),
        mixing @ mixing.T,
        noise @ noise.T,
        np.zeros((1, DIM), np.float16),
        np.zeros((1, 8), np.int32),
        ("{}",),
    )


@pytest.fixture(scope="module")
def states() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    centres = 4 * rng.normal(size=(NAMES, 1, DIM))
    found = centres + rng.normal(size=(NAMES, CONTEXTS, DIM)) / 3
    mask = np.ones((NAMES, CONTEXTS), bool)
    mask[2, 4:] = False
    return found, mask


def test_the_start_is_the_linear_discriminant(statistics, states):
    found, mask = states
    space = gates.metric(statistics)
    first = gates.in_states(gates.start(space.whiten(found), mask), space)
    total = statistics.within + gates.SHRINKAGE * statistics.covariance
    total += gates.RIDGE * np.trace(total) / DIM * np.eye(DIM)
    for gate in range(NAMES):
        apart = found[gate][mask[gate]].mean(0) - statistics.mean
        wanted = np.linalg.solve(total, apart)
        wanted /= wanted @ apart
        np.testing.assert_allclose(first[gate], wanted, rtol=2e-4, atol=1e-5)


def test_the_fit_is_the_minimum_of_its_loss(monkeypatch):
    """A general optimiser on the primal, its hinges written with slack variables."""
    rng = np.random.default_rng(2)
    own = rng.normal(size=(1, CONTEXTS, DIM)) + 2
    others = rng.normal(size=(1, OTHERS, DIM)) + 1.5
    mask = np.ones((1, CONTEXTS), bool)
    first = gates.start(own, mask)
    monkeypatch.setattr(gates, "SWEEPS", 5_000)
    found = gates.moved(first, own, mask, others, np.ones((1, OTHERS), bool))[0]

    slack = gates.SLACK * float(np.square(first).sum())

    def loss(v: np.ndarray) -> float:
        missed = np.maximum(0, gates.HIGH - own[0] @ v).sum()
        passed = np.maximum(0, others[0] @ v - gates.LOW).sum()
        return float(((v - first[0]) ** 2).sum() / 2 + slack * (gates.OWN * missed + passed))

    count = CONTEXTS + OTHERS
    signed = np.concatenate([own[0], -others[0]])
    goal = np.concatenate([np.full(CONTEXTS, gates.HIGH), np.full(OTHERS, -gates.LOW)])
    costs = slack * np.concatenate([np.full(CONTEXTS, gates.OWN), np.ones(OTHERS)])
    best = scipy.optimize.minimize(
        lambda z: ((z[:DIM] - first[0]) ** 2).sum() / 2 + costs @ z[DIM:],
        np.concatenate([first[0], np.full(count, 5.0)]),
        jac=lambda z: np.concatenate([z[:DIM] - first[0], costs]),
        constraints={
            "type": "ineq",
            "fun": lambda z: signed @ z[:DIM] + z[DIM:] - goal,
            "jac": lambda z: np.concatenate([signed, np.eye(count)], axis=1),
        },
        bounds=[(None, None)] * DIM + [(0, None)] * count,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    ).x[:DIM]
    assert np.abs(found - first[0]).max() > 1e-3, "nothing was asked of the fit"
    assert loss(found) < loss(first[0])
    np.testing.assert_allclose(loss(found), loss(best), rtol=2e-3)
    np.testing.assert_allclose(found, best, atol=2e-3)


def test_a_gate_is_the_same_bits_in_other_company(statistics, states):
    found, mask = states
    rng = np.random.default_rng(3)
    others = rng.normal(size=(NAMES, OTHERS, DIM)).astype(np.float32)
    counted = np.ones((NAMES, OTHERS), bool)
    space = gates.metric(statistics)

    def fitted(rows: slice) -> np.ndarray:
        own = space.whiten(found[rows])
        first = gates.start(own, mask[rows])
        return gates.in_states(
            gates.moved(first, own, mask[rows], others[rows], counted[rows]), space
        )

    together = fitted(slice(None))
    for gate in range(NAMES):
        np.testing.assert_array_equal(fitted(slice(gate, gate + 1))[0], together[gate])


def test_nearest_rows_are_those_of_a_full_sort():
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(NAMES, DIM)).astype(np.float32)
    rows = rng.normal(size=(50, DIM)).astype(np.float32)
    excluded = [np.array([2 * gate, 2 * gate + 1]) for gate in range(NAMES)]
    found, scores = gates.nearest(directions, rows, excluded, 5.0, 5)
    sizes = set()
    for gate in range(NAMES):
        every = rows @ directions[gate]
        every[excluded[gate]] = -np.inf
        highest = np.argsort(-every)[:5]
        wanted = sorted(highest[every[highest] > 5.0].tolist())
        sizes.add(len(wanted))
        assert found[gate].tolist() == wanted + [-1] * (5 - len(wanted))
        np.testing.assert_allclose(scores[gate][: len(wanted)], every[wanted], rtol=1e-5)
        assert np.isneginf(scores[gate][len(wanted) :]).all()
    assert len(sizes) > 1, "all gates have as many rows"
