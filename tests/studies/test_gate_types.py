"""Flips of gates between stored types, counted on gates whose answers are known."""

from __future__ import annotations

import numpy as np

from emcid_jax.editing.encoder.hidden_units import make_units
from studies.gate_types import flipped, rounded_units


def test_a_score_at_the_threshold_flips_and_others_do_not() -> None:
    directions, mean = np.eye(2), np.zeros(2)
    units = make_units(0, directions, mean, np.array([0.65, 0.65]), np.zeros((2, 2)))
    inputs = np.array([[1.0, 0.0], [0.64, 0.3], [0.0, 0.9]], np.float32)
    moved = inputs.copy()
    moved[1, 0] = 0.61  # Below half of its ramp, which reaches from 0.6 to 0.65.
    flips, opened, change = flipped(units, inputs, units, moved, "gelu")
    assert (flips, opened) == (1, 3)
    assert 0.5 < change < 0.7
    halves = rounded_units(units, "float16")
    assert flipped(units, inputs, halves, inputs, "quick_gelu")[0] == 0
