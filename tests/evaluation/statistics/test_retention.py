"""Retention by hand: three rounds, a request that fades and one that never came."""

from __future__ import annotations

import numpy as np

from emcid_jax.evaluation.statistics.retention import retention

NAN = np.nan


def test_by_hand() -> None:
    scores = np.array(
        [
            [1.0, 0.5, NAN, NAN],
            [0.8, 0.1, 0.6, NAN],
            [0.5, 0.1, 0.3, 0.9],
        ]
    )
    written = np.array([0, 0, 1, 2])
    # k = 1: (.8 + .1 + .3) / (1 + .5 + .6); k = 2: (.5 + .1) / (1 + .5).
    np.testing.assert_allclose(retention(scores, written), [1.0, 1.2 / 2.1, 0.4])


def test_nothing_to_retain() -> None:
    assert retention(np.array([[0.5], [0.5]]), np.array([1])).tolist()[0] == 1.0
    assert np.isnan(retention(np.array([[0.5], [0.5]]), np.array([1]))[1])
    assert np.isnan(retention(np.zeros((2, 1)), np.array([0]))).all()
