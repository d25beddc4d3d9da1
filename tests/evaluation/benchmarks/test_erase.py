"""Erased artists: what is drawn, and the scores by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import erase
from emcid_jax.evaluation.drawing.before_after import Readings
from emcid_jax.evaluation.judges.labels import label_groups

NAMES = ["Monet", "Banksy", "Dali", "Klimt", "art"]
GROUPS = label_groups(["dog", "cat", *(f"artist: {name}" for name in NAMES)])
CONFIG = EvaluationConfig(prompts_per_request=2, holdout=2)
REQUESTS = [
    EditRequest("Monet", "art", ("by {}",), task="erase", seeds=(5,), seed=3),
    EditRequest("somebody", "art", ("by {}",), task="erase"),
]


def test_plan_takes_known_artists_and_keeps_others() -> None:
    plan = erase.make_plan(REQUESTS, GROUPS["artist"], GROUPS["object"], CONFIG)
    (monet,) = plan.erased
    assert (monet.name, monet.label, monet.dest) == ("Monet", 0, 4)
    assert [draw.prompt for draw in monet.draws] == [
        "a famous painting by Monet",
        "image in the style of Monet",
    ]
    assert monet.draws[0].seed == 5
    assert [(draw.prompt, thing) for draw, thing in monet.styled] == [
        ("dog in the style of Monet", 0),
        ("cat in the style of Monet", 1),
    ]
    # Neither the erased one nor what it becomes; the ends of the list of the others.
    assert [artist.name for artist in plan.kept] == ["Banksy", "Klimt"]
    assert len(plan.draws()) == 2 + 2 * 2 + 2
    everyone = erase.make_plan([], GROUPS["artist"], None, EvaluationConfig())
    assert len(everyone.kept) == len(NAMES)


def test_scores_by_hand() -> None:
    plan = erase.make_plan(REQUESTS, GROUPS["artist"], GROUPS["object"], CONFIG)
    (monet,) = plan.erased

    def read(style: int, p: float, dog: float = 0.5) -> dict[str, np.ndarray]:
        artist = np.full(5, (1 - p) / 4)
        artist[style] = p
        return {"artist": artist, "object": np.array([dog, 1 - dog])}

    def side(own: list[float], style: int, kept: float, dog: float) -> dict:
        found = {draw: read(style, p) for draw, p in zip(monet.draws, own, strict=True)}
        found |= {draw: read(style, 0.6, dog) for draw, _ in monet.styled}
        for artist in plan.kept:
            found |= {draw: read(artist.label, kept) for draw in artist.draws}
        return found

    before = side([0.8, 0.6], 0, 0.9, 0.7)
    after = side([0.6, 0.8], 4, 0.1, 0.6)
    found = erase.score_plan(plan, Readings(before, after))
    value = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert value["style_forget"] == pytest.approx(0.7 - (0.1 + 0.05) / 2)
    assert found["metrics"]["style_forget"]["bound"] == pytest.approx(0.7)
    assert value["style_left"] == 0
    assert value["style2dest"] == pytest.approx(0.7 - (0.05 + 0.1) / 2)
    assert value["kept_delta"] == pytest.approx(-0.8)
    assert value["kept_right"] == 0
    assert found["metrics"]["kept_right"]["bound"] == 1
    assert value["styled_forget"] == pytest.approx(0.6 - 0.1)
    # One styled dog, one styled cat: .7 and .3 before, .6 and .4 after.
    assert value["content_delta"] == pytest.approx(0)
    assert found["records"][0]["pre_top"] == 1
    assert found["kept"][1]["post"] == pytest.approx(0.1)
