"""Aggregates against numbers worked out by hand (written out in the comments)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.evaluation.benchmarks.aice.scores import (
    AliasScores,
    HoldoutScores,
    SplitScores,
    aggregates,
    average_score,
    raw_scores,
)
from emcid_jax.evaluation.statistics.bootstrap import bootstrap_mean, request_scores, score


def split(*columns: list[float]) -> SplitScores:
    return SplitScores(*(np.array(c, np.float64) for c in columns))


# pre_source, post_source, pre_source_dest, post_source_dest, pre_dest, post_dest
EDIT = split([0.9, 0.7], [0.1, 0.3], [0.0, 0.2], [0.8, 0.6], [0.9, 0.8], [0.85, 0.9])
GENERAL = split([0.8, 0.6], [0.2, 0.2], [0.1, 0.1], [0.7, 0.4], [0.9, 0.7], [0.6, 0.8])
ALIAS = AliasScores(
    np.array([0, 0, 1]),
    np.array([0.9, 0.6, 0.3]),
    np.array([0.3, 0.6, 0.0]),
    np.array([0.0, 0.1, 0.2]),
    np.array([0.6, 0.1, 0.5]),
)
HOLDOUT = HoldoutScores(np.array([1.0, 0.8, 0.6, 0.4]), np.array([0.9, 0.8, 0.4, 0.5]))


def test_score_is_a_mean_over_images_then_over_requests() -> None:
    # (0.2 + 0.4) / 2 = 0.3 and 0.9: requests weigh the same, images do not -> 0.6, not 0.5.
    images = [np.array([0.2, 0.4]), np.array([0.9])]
    np.testing.assert_allclose(request_scores(images), [0.3, 0.9])
    assert score(images) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="without images"):
        request_scores([np.array([])])


def test_aggregates_by_hand() -> None:
    found = aggregates(EDIT, GENERAL, ALIAS, HOLDOUT)
    expected = {
        "efficacy_source_forget": 0.6,  # ((.9-.1) + (.7-.3)) / 2
        "efficacy_source2dest": 0.6,  # ((.8-0) + (.6-.2)) / 2
        "efficacy_dest_forget": -0.025,  # ((.9-.85) + (.8-.9)) / 2
        "generalization_source_forget": 0.5,  # (.6 + .4) / 2
        "generalization_source2dest": 0.45,  # (.6 + .3) / 2
        "generalization_dest_forget": 0.1,  # (.3 - .1) / 2
        "alias2dest": 0.3,  # (.6 + 0 + .3) / 3
        "alias_forget": 0.3,  # (.6 + 0 + .3) / 3
        "holdout_delta": -0.05,  # (-.1 + 0 - .2 + .1) / 4
        "average_score": 0.2,  # (.45 - .05) / 2, arithmetic
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name
    assert {name: metric.count for name, metric in found.items()} == {
        **dict.fromkeys(expected, 2),
        "alias2dest": 3,
        "alias_forget": 3,
        "holdout_delta": 4,
    }


def test_bounds_by_hand() -> None:
    found = aggregates(EDIT, GENERAL, ALIAS, HOLDOUT)
    expected = {
        "efficacy_source_forget": 0.8,  # mean pre_source
        "efficacy_source2dest": 0.9,  # 1 - mean pre_source_dest
        "efficacy_dest_forget": 0.85,
        "generalization_source_forget": 0.7,
        "generalization_source2dest": 0.9,
        "generalization_dest_forget": 0.8,
        "alias2dest": 0.9,
        "alias_forget": 0.6,
        "holdout_delta": -0.7,  # - mean pre
        "average_score": 0.45,  # (0.9 + 0) / 2
    }
    for name, bound in expected.items():
        assert found[name].bound == pytest.approx(bound), name
    # Asked for the destination outright the clean model scores .85 (templates), .8 (sentences).
    assert found["efficacy_source2dest"].reachable == pytest.approx(0.75)
    assert found["generalization_source2dest"].reachable == pytest.approx(0.7)


def test_missing_sets_leave_their_aggregates_out() -> None:
    assert aggregates(None, None, None, None) == {}
    assert set(aggregates(None, GENERAL, None, None)) == {
        "generalization_source_forget",
        "generalization_source2dest",
        "generalization_dest_forget",
    }
    empty = AliasScores(np.zeros(0, np.int64), *(np.zeros(0) for _ in range(4)))
    assert set(aggregates(None, None, empty, HOLDOUT)) == {"holdout_delta"}


def test_raw_scores_use_the_released_names() -> None:
    found = raw_scores(EDIT, GENERAL, ALIAS, HOLDOUT)
    assert len(found) == 6 + 6 + 4 + 2
    assert found["pre_source_cls_score_edit"] == pytest.approx(0.8)
    assert found["post_source_dest_cls_score_general"] == pytest.approx(0.55)
    assert found["post_dest_cls_score_edit"] == pytest.approx(0.875)
    assert found["post_source_cls_score_alias"] == pytest.approx(0.3)
    assert found["post_cls_score_specificity"] == pytest.approx(0.65)


def test_interval_is_seeded_and_covers_the_exact_bootstrap_of_two_values() -> None:
    # Two values 0 and 1: resampled means are 0, .5, 1 with probability 1/4, 1/2, 1/4.
    metric = bootstrap_mean(np.array([0.0, 1.0]), bound=1.0, seed=3)
    assert (metric.low, metric.high) == (0.0, 1.0)
    values = np.random.default_rng(0).uniform(size=40)
    assert bootstrap_mean(values, bound=1.0, seed=5) == bootstrap_mean(values, bound=1.0, seed=5)
    assert bootstrap_mean(values, bound=1.0, seed=5) != bootstrap_mean(values, bound=1.0, seed=6)


def test_interval_width_follows_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.2, 400)
    metric = bootstrap_mean(values, bound=1.0, draws=4000)
    assert metric.low is not None
    assert metric.high is not None
    half = 1.96 * values.std() / 20
    assert metric.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert metric.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_aliases_of_one_request_are_resampled_together() -> None:
    # 50 aliases in 2 requests, constant within a request: as uncertain as two values.
    units = np.repeat([0, 1], 25)
    together = bootstrap_mean(units.astype(float), bound=1.0, units=units)
    assert (together.low, together.high) == (0.0, 1.0)
    apart = bootstrap_mean(units.astype(float), bound=1.0)
    assert apart.low is not None
    assert apart.low > 0.3


def test_one_unit_has_no_interval() -> None:
    metric = bootstrap_mean(np.array([0.25]), bound=1.0)
    assert (metric.value, metric.low, metric.high, metric.count) == (0.25, None, None, 1)
    same = bootstrap_mean(np.array([0.2, 0.4]), bound=1.0, units=np.array([7, 7]))
    assert same.low is None
    one = HoldoutScores(np.array([1.0]), np.array([0.5]))
    assert average_score(GENERAL, one).low is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(0, 9))
def test_interval_contains_only_reachable_means(values: list[float], seed: int) -> None:
    metric = bootstrap_mean(np.array(values), bound=1.0, seed=seed, draws=200)
    assert metric.low is not None
    assert metric.high is not None
    assert min(values) - 1e-12 <= metric.low <= metric.high <= max(values) + 1e-12
