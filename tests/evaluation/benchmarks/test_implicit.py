"""TIMED's and RoAD's figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.benchmarks.implicit import choice, implicit_scores


def test_choice_is_a_softmax_over_two() -> None:
    old, new = np.array([25.0, 30.0]), np.array([25.0, 28.0])
    expected = np.exp(new) / (np.exp(old) + np.exp(new))
    np.testing.assert_allclose(choice(old, new), expected)


def test_scores_by_hand() -> None:
    # Two seeds, two edits; seed by seed the share of right choices is written beside.
    source = np.array([[0.9, 0.6], [0.2, 0.7]])  # 1, 1/2
    related = np.array([[[0.8, 0.6], [0.95, 0.4]], [[0.5, 0.6], [0.2, 0.1]]])  # 3/4, 1/4
    unrelated = np.array([[[0.1], [0.4]], [[0.5], [0.0]]])  # 1, 1/2
    found = implicit_scores(source, related, unrelated)
    assert found.efficacy == pytest.approx((0.75, 0.25))
    assert found.generality == pytest.approx((0.5, 0.25))
    assert found.confident[0] == pytest.approx((0.25, 0.25))  # > .75: 2/4, 0
    assert found.confident[1] == pytest.approx((0.125, 0.125))  # > .9: 1/4, 0
    assert found.specificity == pytest.approx((0.75, 0.25))
    assert found.f1 == pytest.approx(2 * 0.5 * 0.75 / 1.25)
