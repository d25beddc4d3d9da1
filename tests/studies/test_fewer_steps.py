"""When a concept stops, in the study of fewer steps."""

from __future__ import annotations

import numpy as np

from studies.fewer_steps import CHUNK, stops


def test_a_concept_stops_at_the_first_ten_steps_that_gain_less_than_the_share() -> None:
    means = np.array([[8.0, 8.0, 8.0], [4.0, 7.0, 8.1], [2.0, 6.9, 4.0], [1.9, 3.0, 2.0]])
    curve = np.repeat(means, CHUNK, axis=0)
    assert stops(curve, 0.02).tolist() == [3, 2, 1]
    assert stops(curve, 0.6).tolist() == [1, 1, 1]
    assert stops(curve, 0.001).tolist() == [3, 3, 1]
