"""The summary of an edit by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.statistics.summary import Done, Kept, summarise

NAN = float("nan")


def test_figures_by_hand() -> None:
    done = Done(
        gone=np.array([1.0, 0.5, 1.0, 1.0]),
        shown=np.array([1.0, 0.0, NAN, 0.5]),
        gone_unseen=np.array([1.0, 0.0, 0.5, 0.5]),
        shown_unseen=np.array([0.5, 0.0, NAN, 0.25]),
        own=np.array([NAN, 1.0, NAN, NAN]),
    )
    kept = Kept(before=np.array([1.0, 1.0, 0.0, 1.0]), after=np.array([1.0, 0.5, 0.0, 0.75]))
    found = summarise(done, kept)
    value = {name: figure.value for name, figure in found.items()}
    assert value == pytest.approx(
        {
            "gone": 0.875,
            "shown": 0.5,  # The third request's destination is not known.
            "gone_unseen": 0.5,
            "shown_unseen": 0.25,
            "own": 1.0,
            "acc_s": 0.5625,
            "stayed": 0.75,  # 2.25 of 3.
            "h": 2 / (1 / 0.875 + 1 / 0.5625),
            "h_unseen": 2 / (1 / 0.5 + 1 / 0.5625),
            "h_dest": 2 / (1 / 0.5 + 1 / 0.75),
            "h_dest_unseen": 2 / (1 / 0.25 + 1 / 0.75),
        }
    )
    assert found["own"].low is None  # One request has no interval.
    low, high = found["h"].low, found["h"].high
    assert low is not None
    assert high is not None
    assert 0 < low < value["h"] < high < 1


def test_interval_of_h_is_that_of_both_parts_resampled() -> None:
    rng = np.random.default_rng(5)
    gone, before = (rng.random(40) < share for share in (0.8, 0.9))
    after = before & (rng.random(40) < 0.7)
    gone, before, after = (part.astype(np.float64) for part in (gone, before, after))
    found = summarise(Done(*[gone] * 5), Kept(before, after), draws=4000)
    draws = np.random.default_rng(0)
    rows = draws.integers(0, 40, (2, 20_000, 40))
    first, second, clean = gone[rows[0]].mean(1), after[rows[1]].mean(1), before[rows[1]].mean(1)
    for name, kept in (("h", second), ("h_dest", np.minimum(second / clean, 1))):
        expected = np.quantile(2 / (1 / first + 1 / kept), [0.025, 0.975])
        np.testing.assert_allclose([found[name].low, found[name].high], expected, atol=0.015)


def test_what_is_missing_is_left_out_and_nothing_lost_is_all_that_stayed() -> None:
    nothing = np.array([NAN, NAN])
    done = Done(np.array([1.0, 1.0]), nothing, nothing, nothing, nothing)
    assert set(summarise(done, Kept(np.zeros(0), np.zeros(0)))) == {"gone"}
    found = summarise(done, Kept(np.array([0.5, 0.5]), np.array([1.0, 0.5])))
    assert set(found) == {"gone", "acc_s", "stayed", "h"}
    assert found["stayed"].value == 1.0
    assert summarise(done, Kept(np.zeros(2), np.zeros(2)))["stayed"].value == 1.0
