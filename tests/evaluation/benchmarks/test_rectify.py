"""Rectified names: what is drawn, the scores by hand, and who scores which request."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import rectify, registry
from emcid_jax.evaluation.drawing.before_after import Readings
from emcid_jax.evaluation.judges.labels import label_groups

GROUPS = label_groups(["dog", "cat, kitty", "fox", "artist: Monet", "gender: male", "gender: she"])
CONFIG = EvaluationConfig(prompts_per_request=1)
KITTY = EditRequest(
    "mouser",
    "kitty",
    ("a {}", "{}"),
    task="rectify",
    seeds=(4, 5),
    validation_templates=("{}!", "{}?"),
)
FOX = EditRequest("reynard", "the fox", ("{}",), task="rectify", dest_id=2)
UNKNOWN = EditRequest("gnu", "gnu antelope", ("{}",), task="rectify")


def test_plan() -> None:
    kitty, fox = rectify.make_plan([KITTY, FOX, UNKNOWN], GROUPS["object"], CONFIG)
    assert (kitty.class_id, fox.class_id) == (1, 2)
    edit, general, dest = kitty.draws
    assert [draw.prompt for draw in edit + general + dest] == ["a mouser", "mouser!", "kitty!"]
    assert general[0].seed == dest[0].seed == 4


def test_scores_by_hand() -> None:
    names = rectify.make_plan([KITTY, FOX], GROUPS["object"], CONFIG)
    kitty, fox = (dict(zip(rectify.SETS, name.draws, strict=True)) for name in names)

    def read(*p: float) -> dict[str, np.ndarray]:
        return {"object": np.array(p)}

    wrong, right = read(0.8, 0.1, 0.1), read(0.1, 0.7, 0.2)
    before = {draw: wrong for name in names for part in name.draws for draw in part}
    before[kitty["dest"][0]] = right
    after = before | {kitty["general"][0]: right, fox["general"][0]: read(0.5, 0.1, 0.4)}
    found = rectify.score(names, Readings(before, after))
    value = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert value["edit_right"] == 0
    assert value["general_right"] == 0.5
    assert value["general_right_gain"] == 0.5
    assert value["general_gain"] == pytest.approx(((0.7 - 0.1) + (0.4 - 0.1)) / 2)
    assert value["dest_right"] == 0.5
    assert value["dest_right_gain"] == 0
    assert found["metrics"]["dest_right_gain"]["bound"] == 0.5
    assert found["records"][1]["general"] == {
        "pre": 0.1, "post": 0.4, "pre_right": 0, "post_right": 0
    }  # fmt: skip


def test_every_request_has_one_benchmark() -> None:
    update = EditRequest("dog", "cat", ("{}",))
    monet = EditRequest("Monet", "art", ("{}",), task="erase")
    hidden = EditRequest("dog", "", ("{}",), task="erase")
    pair = {"task": "debias", "ratios": (0.5, 0.5)}
    people = EditRequest("a cook", ("a male cook", "she cook"), ("{}",), **pair)
    tall = EditRequest("a cook", ("a tall cook", "a short cook"), ("{}",), **pair)
    found = registry.split([update, monet, hidden, people, tall, KITTY, UNKNOWN], GROUPS)
    assert found == {
        "aice": (update, hidden, tall, UNKNOWN),
        "debias": (people,),
        "erase": (monet,),
        "rectify": (KITTY,),
    }
