"""Accuracies and harmonic means against numbers worked out by hand, and two published ones."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.statistics.accuracy import erasure, h_c, h_o, harmonic_mean, top1

NONE = np.zeros(0)


def test_top1_by_hand() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7]])
    assert top1(probabilities, np.array([1, 2, 2])).tolist() == [True, False, True]


def test_harmonic_means_by_hand() -> None:
    assert h_c(0.2, 0.5) == pytest.approx(2 / (1 / 0.8 + 1 / 0.5))  # 2 / 3.25 = 0.6154
    assert h_o(0.2, 0.5, 0.6) == pytest.approx(3 / (1.25 + 2 + 2.5))  # 3 / 5.75 = 0.5217
    assert harmonic_mean([0.0, 1.0]) == 0.0
    assert h_c(1.0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("acc_e", "acc_s", "published"),
    [(0.0431, 0.8456, 0.8978), (0.0012, 0.3790, 0.549), (0.016, 0.877, 0.928)],
)
def test_published_values_of_h_c(acc_e: float, acc_s: float, published: float) -> None:
    # MACE's 100 celebrities, UCE's there, MACE's 10 in SPEED's protocol.
    assert h_c(acc_e, acc_s) == pytest.approx(published, abs=1e-3)


def test_erasure_by_hand() -> None:
    erased, kept = np.array([0.0, 0.5]), np.array([1.0, 1.0, 0.4])
    synonyms, requests = np.array([0.0, 1.0, 0.2]), np.array([0, 0, 1])
    found = erasure(erased, kept, synonyms, requests)
    values = {name: metric.value for name, metric in found.items()}
    assert values == pytest.approx(
        {
            "acc_e": 0.25,
            "acc_s": 0.8,
            "acc_g": 0.4,
            "h_c": 2 / (1 / 0.75 + 1 / 0.8),
            "h_o": 3 / (1 / 0.75 + 1 / 0.8 + 1 / 0.6),
        }
    )
    assert [found[name].count for name in found] == [2, 3, 3, 2, 2]
    assert [found[name].bound for name in found] == [0, 1, 0, 1, 1]
    # All means between the extremes of resampling: Acc_e 0 or .5, Acc_s .4 or 1.
    assert found["acc_e"].low == 0.0
    assert found["acc_e"].high == 0.5
    low, high = found["h_c"].low, found["h_c"].high
    assert low is not None
    assert high is not None
    assert h_c(0.5, 0.4) <= low < values["h_c"] < high <= 1.0
    assert found == erasure(erased, kept, synonyms, requests)


def test_sets_that_are_missing() -> None:
    assert erasure(NONE, NONE, NONE, np.zeros(0, int)) == {}
    found = erasure(np.array([0.2]), np.array([0.5]), NONE, np.zeros(0, int))
    assert set(found) == {"acc_e", "acc_s", "h_c"}
    assert found["h_c"].value == pytest.approx(0.8 * 0.5 * 2 / 1.3)
    assert found["h_c"].low is None
