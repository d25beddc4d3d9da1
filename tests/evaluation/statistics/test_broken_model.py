"""Erased or broken: models that draw another thing, noise, or one thing for everything."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.statistics.broken_model import (
    LEAST_VARIETY,
    Fate,
    fate,
    floor_of,
    guard,
    variety,
)

LABELS = 10
CLEAN = np.full((20, LABELS), 0.1 / 9)
CLEAN[np.arange(20), np.arange(20) % LABELS] = 0.9
IDS = np.arange(20) % LABELS


def drawn(*labels: int, probability: float = 0.9) -> np.ndarray:
    rows = np.full((len(labels), LABELS), (1 - probability) / (LABELS - 1))
    rows[np.arange(len(labels)), labels] = probability
    return rows


def test_fates_by_hand() -> None:
    rows = np.concatenate([drawn(0, 3), drawn(4, 0, probability=0.3)])
    # Asked for 0: drawn, another thing, nothing one could name, drawn though hard to tell.
    assert fate(rows, np.zeros(4, int), 0.5) == Fate(kept=0.5, erased=0.25, broken=0.25)
    assert floor_of(np.concatenate([drawn(*[1] * 99), drawn(1, probability=0.2)])) == 0.9


def test_variety_by_hand() -> None:
    certain = np.eye(4)
    assert variety(certain) == pytest.approx(4.0)
    assert variety(certain[[0, 0, 1, 1]]) == pytest.approx(2.0)
    assert variety(np.full((5, 4), 0.25)) == pytest.approx(1.0)
    # Two pictures (.75, .25) and (.25, .75): KL to (.5, .5) is .75 ln 1.5 + .25 ln .5.
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert variety(np.array([[0.75, 0.25], [0.25, 0.75]])) == pytest.approx(expected)


def test_an_erased_concept_is_told_from_a_broken_model() -> None:
    sources, ids = drawn(5, 5, 5), np.array([0, 1, 2])
    erased = guard(CLEAN, CLEAN, sources, ids)
    assert erased.intact
    assert erased.sources == Fate(0.0, 1.0, 0.0)
    assert erased.variety == pytest.approx(1.0)

    noise = np.full((20, LABELS), 1 / LABELS)
    broken = guard(CLEAN, noise, noise[:3], ids)
    assert not broken.intact
    assert broken.broken == 1.0
    assert broken.sources.erased == 0.0

    # The judge is sure of every picture, but they are all alike: only the variety tells.
    alike = guard(CLEAN, drawn(*[7] * 20), drawn(7, 7, 7), ids)
    assert alike.broken == 0.0
    assert alike.sources.erased == 1.0
    assert alike.variety < LEAST_VARIETY
    assert not alike.intact


def test_drawing_wrong_but_recognisable_things_is_no_breakage() -> None:
    swapped = guard(CLEAN, CLEAN[::-1], CLEAN[:3], IDS[:3])
    assert swapped.intact
    assert swapped.sources == Fate(1.0, 0.0, 0.0)
