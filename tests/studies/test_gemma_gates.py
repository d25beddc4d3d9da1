"""Lists of names and false firing of the study of Gemma's gates, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from studies.gates import any_open
from studies.gemma_gates import Fit, split

NAMES = [f"name {index}" for index in range(12)] + ["Name 3"]


def test_no_name_is_in_two_lists() -> None:
    lists = split(NAMES, (4, 3, 2), 1, 0)
    assert [len(one) for one in lists] == [4, 3, 1, 2]
    assert len({name.lower() for one in lists for name in one}) == 10
    # What is left out at the front is told last.
    later = split(NAMES, (4, 3, 5), 0, 4)
    assert later.edited[:3] == lists.held_out
    assert later.keep[-4:] == lists.edited
    with pytest.raises(SystemExit, match="12 different names; 13 are asked for"):
        split(NAMES, (6, 6, 1), 0, 0)


def test_false_firing_against_every_gate_and_token() -> None:
    rng = np.random.default_rng(0)
    fit = Fit(rng.normal(size=(5, 4)), rng.normal(size=5) + 2)
    states = rng.normal(size=(40, 4))
    spoken = [rng.choice(40, 3, replace=False) for _ in range(5)]
    wanted = [
        any(
            float(state @ fit.directions[gate]) > fit.thresholds[gate] and token not in spoken[gate]
            for gate in range(5)
        )
        for token, state in enumerate(states)
    ]
    assert 0 < sum(wanted) < 40
    found = any_open([(states, fit.directions, fit.thresholds)], spoken)
    np.testing.assert_array_equal(found, wanted)
