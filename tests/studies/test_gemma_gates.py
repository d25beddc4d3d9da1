"""Lists of names and false firing of the study of Gemma's gates, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.units import gates
from emcid_jax.editing.units.names import Names, Strangers
from emcid_jax.editing.units.statistics import UnitStatistics
from studies.gates import any_open
from studies.gemma_gates import Asked, Fit, fits_of, split
from studies.gemma_states import Tokens

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


def test_every_fit_is_made_and_the_last_alone_knows_the_names_to_keep() -> None:
    """Four sources, two destinations and three names to keep, of which one is all but a source."""
    rng = np.random.default_rng(0)
    dim, size = 12, 6
    texts = [f"name {index}" for index in range(9)]
    centres = 4 * rng.normal(size=(9, 1, dim))
    centres[8] = centres[0] + 0.6 * rng.normal(size=(1, dim))
    states = (centres + rng.normal(size=(9, size, dim)) / 8).astype(np.float32)
    nothing = Strangers(np.zeros((4, size, dim), np.float32), np.zeros((4, size), bool))
    found = UnitStatistics(
        block=0,
        model_hash="",
        captions=10,
        mean=np.zeros(dim),
        covariance=np.eye(dim),
        within=np.eye(dim) / 64,
        reference=rng.normal(size=(600, dim)).astype(np.float16),
        recent=np.zeros((600, 8), np.int32),
        pool=("{}",),
    )
    space = gates.metric(found)
    own = space.whiten(states)
    names = Names(texts, texts, own, np.ones((9, size), bool), 4, (nothing, nothing))
    none = Tokens([], np.zeros((0, 8), int), np.zeros(0, int), np.zeros(0, bool))
    ask = Asked(
        requests=[EditRequest(text, "name 4", ("{}",)) for text in texts[:4]],
        kinds=[],
        others=texts[4:],
        dests=2,
        own=[],
        shown=[],
        strange=(),
        whole=np.ones((4, size), bool),
        phrases=[],
        pool=(),
        captions=none,
        unseen=[],
        false={},
        names_at={},
    )

    def tokenizer(asked: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + len(text)] for text in asked]}

    fits = dict(fits_of(ask, names, found, space, tokenizer))
    assert list(fits) == ["plain", "edit", "strict", "strict, names to keep"]
    scores = {
        label: np.einsum("ncd,gd->ngc", states, fit.directions) - fit.thresholds[:, None]
        for label, fit in fits.items()
    }
    for label, one in scores.items():
        assert (one[range(4), range(4)] > 0).all(), label
    # What is told of a name to keep is that it is not the source it resembles.
    assert (scores["strict"][8, 0] > 0).any()
    assert (scores["strict, names to keep"][8, 0] < 0).all()
