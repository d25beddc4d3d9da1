"""Debias: delta by hand, labels found in destinations, shares counted from readings."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import debias
from emcid_jax.evaluation.drawing.before_after import Readings
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.judges.labels import label_groups

LABELS = """shark / tiger shark, requin / tiger / scene: beach / scene: snow / scene: sea /
profession: nurse / profession: construction worker / gender: female / gender: male"""
GROUPS = label_groups([" ".join(label.split()) for label in LABELS.split("/")])


def request(*dests: str, source: str = "a nurse", ratios: tuple[float, ...] = ()) -> EditRequest:
    shares = ratios or (1 / len(dests),) * len(dests)
    return EditRequest(source, dests, ("{}",), task="debias", ratios=shares)


@pytest.mark.parametrize(
    ("dests", "values"),
    [
        (("a female nurse", "a male nurse"), ("gender", (0, 1))),
        (("a Male nurse", "a  female nurse"), ("gender", (1, 0))),
        (("a nurse in the snow", "a nurse on the beach"), ("scene", (1, 0))),
        (("a tiger shark", "one requin"), None),
        (("a tiger shark", "a tiger", "one shark"), ("object", (1, 2, 0))),
        (("a nurse", "a male nurse"), None),
        (("a female nurse", "a very female nurse"), None),
    ],
)
def test_values_are_read_from_the_destinations(dests, values) -> None:
    assert debias.find_values(request(*dests), GROUPS) == values


def test_only_the_asked_values_compete() -> None:
    read = np.array([[0.9, 0.06, 0.04], [0.1, 0.2, 0.7], [0.8, 0.05, 0.15]])
    np.testing.assert_array_equal(debias.count_values(read, (2, 1)), [2, 1])
    np.testing.assert_array_equal(debias.count_values(read, (0, 1, 2)), [2, 0, 1])


def test_delta_by_hand() -> None:
    # Published: |p - 0.5| / 0.5.
    shares = np.array([[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]])
    np.testing.assert_allclose(debias.delta(shares, (0.5, 0.5)), [0, 0.5, 1])
    # (|.5-.2| + |.5-.8|) / (2 * .8) = .375; all of the rare value is as far as can be.
    np.testing.assert_allclose(debias.delta(np.array([[0.5, 0.5]]), (0.2, 0.8)), [0.375])
    np.testing.assert_allclose(debias.delta(np.array([[1.0, 0.0]]), (0.2, 0.8)), [1])
    # Three values: (.1 + .1 + .2) / (2 * .75) = 4/15.
    found = debias.delta(np.array([[0.6, 0.15, 0.25]]), (0.5, 0.25, 0.25))
    np.testing.assert_allclose(found, [0.2 / 1.5])


def test_chance_delta_is_that_of_a_fair_coin() -> None:
    # Two throws: 0, 1 or 2 heads with 1/4, 1/2, 1/4; delta 1, 0, 1. Four: (1*1 + 4*.5)*2/16.
    assert debias.chance_delta((0.5, 0.5), 2) == pytest.approx(0.5, abs=0.015)
    assert debias.chance_delta((0.5, 0.5), 4) == pytest.approx(6 / 16, abs=0.015)


def test_summary_has_no_spread_of_one_seed() -> None:
    assert debias.summary(np.array([0.25])) == {"delta": 0.25, "delta_std": None}
    found = debias.summary(np.array([0.1, 0.3]))
    assert found["delta"] == pytest.approx(0.2)
    assert found["delta_std"] == pytest.approx(np.sqrt(0.02))


def test_scores_of_a_plan() -> None:
    config = EvaluationConfig(prompts_per_request=2, debias_seeds=2, debias_images=2)
    plan = debias.make_plan([request("a female nurse", "a male nurse")], GROUPS, config)
    (one,) = plan
    assert one.thing == ("profession", 0)
    assert [len(draws) for draws in one.draws] == [4, 4]
    assert {draw.prompt for draws in one.draws for draw in draws} == {
        "A photo of a nurse",
        "A painting of a nurse",
    }
    assert len({draw for draws in one.draws for draw in draws}) == 8
    assert [draw.prompt for draw in one.explicit[1]] == [
        "A photo of a male nurse",
        "A painting of a male nurse",
    ]

    def read(female: float, nurse: float = 0.9) -> dict[str, np.ndarray]:
        return {
            "gender": np.array([female, 1 - female]),
            "profession": np.array([nurse, 1 - nurse]),
        }

    def side(females: list[float], nurse: float, obeyed: float) -> dict[Draw, dict]:
        draws = [draw for part in one.draws for draw in part]
        found = {draw: read(f, nurse) for draw, f in zip(draws, females, strict=True)}
        found |= {draw: read(0.9) for draw in one.explicit[0]}
        return found | {draw: read(obeyed) for draw in one.explicit[1]}

    before = side([0.9] * 8, 0.9, 0.1)
    after = side([0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1], 0.2, 0.8)
    found = debias.score(plan, Readings(before, after))
    (record,) = found["records"]
    assert record["before"] == {
        "shares": [1, 0], "delta": 1, "delta_std": 0, "subject": 1, "obeyed": 1
    }  # fmt: skip
    assert record["after"]["shares"] == [0.625, 0.375]
    assert record["after"]["delta"] == pytest.approx(0.25)  # 0 and 0.5
    assert record["after"]["delta_std"] == pytest.approx(0.5 / np.sqrt(2))
    assert record["after"]["subject"] == 0
    assert record["after"]["obeyed"] == 0.5
    assert found["total"]["after"]["delta"] == pytest.approx(0.25)
