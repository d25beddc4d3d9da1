"""Helpers of the open questions' benchmarks, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.sprites.factors import FACTORS, LABELS
from studies import cost_model, encoder_cases, long_run, overlap_study, revival
from studies.cost_model import Sizes
from studies.overlap_study import Pair


def test_fit_finds_constant_rate_and_exponent():
    law = cost_model.fit([10, 100, 1000, 2000], [3 + 0.5 * n**1.5 for n in (10, 100, 1000, 2000)])
    assert law == pytest.approx((3, 0.5, 1.5), rel=1e-6)
    assert law.at(4) == pytest.approx(7)


def test_stage_two_operations():
    # 2 layers, width 2, 3 keys, 1 prompt of 1 token: a block is 8*4 + 4*2*3 = 56 operations.
    sizes = Sizes(dim=2, keys=3, layers=2, prompts=1, tokens=1.0)
    dual = cost_model.stage_two_flops(sizes, 1)
    assert dual["passes"] == 56 * (2 + 1)
    # 2*9 + 2*3 + 1/3 + 2*2 + 2*3*2 + 9*2 = 58 1/3 per layer; C's factor: 27/3 per layer.
    assert dual["solves"] == pytest.approx(2 * (58 + 1 / 3))
    assert dual["constant"] == 18
    primal = cost_model.stage_two_flops(sizes, 3)
    assert primal["solves"] == 2 * (54 + 9 + 36 + 36)
    assert primal["constant"] == 0


def test_names_that_overlap():
    objects = ["rifle", "assault rifle", "tiger", "tiger shark", "great white shark", "tank suit"]
    assert overlap_study.siblings(objects) == [Pair("tiger shark", "great white shark")]
    assert overlap_study.children(objects, ends=True) == [Pair("rifle", "assault rifle")]
    assert overlap_study.children(objects, ends=False) == [Pair("tiger", "tiger shark")]


def test_aliases_share_a_word_or_none():
    found = overlap_study.aliases(["tench", "hammerhead", "great white shark"], 5)
    assert Pair("great white shark", "white shark") in found[True]
    assert Pair("tench", "Tinca tinca") in found[False]


def test_near_names_nobody_twice():
    spare = [f"w{i}" for i in range(9)]
    pairs = overlap_study.near(["tiger shark", "reef shark"], spare, 2)
    names = [name for pair in pairs for name in pair]
    assert len(names) == len(set(names))
    assert Pair("tiger shark", "reef shark") in pairs
    assert Pair("w5", "w3") in pairs  # strangers


def test_share_of_an_edit_taken_back():
    def params(kernel: np.ndarray) -> dict:
        return {"text_model": {"encoder": {"layers.0": {"mlp": {"fc2": {"kernel": kernel}}}}}}

    delta = np.array([[3.0, 4.0]])  # one output, two keys
    written = WeightEdit({0: delta}, StageTwoReport((), 0.0, 0.0))
    start = params(np.array([[1.0], [1.0]]))
    halfway = params(np.array([[1.0 - 1.5], [1.0 - 2.0]]))
    assert revival.undone(start, halfway, written) == pytest.approx(0.5)
    assert revival.undone(start, start, written) == 0


def test_readout_reads_what_is_linear_in_the_features():
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(f.size, size=400) for f in FACTORS], axis=1)
    features = np.concatenate(
        [np.eye(f.size)[one] for f, one in zip(FACTORS, labels.T, strict=True)], axis=1
    )
    found = encoder_cases.fit_readout(features, labels)
    assert found["kernel"].shape == (LABELS, LABELS)
    logits = features @ found["kernel"] + found["bias"]
    np.testing.assert_allclose(logits, features, atol=1e-8)


def test_a_run_goes_on_from_what_it_saved(tmp_path: Path):
    now = long_run.Written({0: np.ones((2, 3)), 10: np.eye(2)}, {4: np.eye(3)}, 7, 1.5)
    long_run.save(tmp_path / "state.npz", now)
    again = long_run.load(tmp_path / "state.npz")
    assert (again.rounds, again.seconds) == (7, 1.5)
    assert again.deltas.keys() == {0, 10}
    np.testing.assert_array_equal(again.kept[4], np.eye(3))
    np.testing.assert_array_equal(again.deltas[0], np.ones((2, 3)))
