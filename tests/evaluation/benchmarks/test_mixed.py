"""One edit judged: what is drawn of each kind of request, and every figure by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import mixed
from emcid_jax.evaluation.benchmarks.untouched_names import split_untouched
from emcid_jax.evaluation.drawing.before_after import Readings
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.judges.labels import label_groups

OBJECTS = [f"o{i}" for i in range(12)]
ARTISTS = ["Monet", "art", "a0", "a1", "a2", "a3"]
GROUPS = label_groups([*OBJECTS, *(f"artist: {name}" for name in ARTISTS)])
CONFIG = EvaluationConfig(prompts_per_request=1, aliases=False)
REQUESTS = [
    EditRequest("Monet", "art", ("by {}",), task="erase"),
    EditRequest("o0", "o1", ("a photo of {}",)),
    EditRequest("nobody knows", "o2", ("{}",)),
    EditRequest("oh three", "o3", ("{}",), task="rectify"),
]
UNTOUCHED = split_untouched(REQUESTS, GROUPS, 2, 1)
PLAN = mixed.make_plan(REQUESTS, UNTOUCHED, GROUPS, CONFIG, [one.source for one in REQUESTS])


def test_every_request_gets_the_prompts_of_its_benchmark_in_the_order_of_the_list() -> None:
    monet, update, wrong = PLAN.judged
    assert [one.request for one in PLAN.judged] == [REQUESTS[0], REQUESTS[1], REQUESTS[3]]
    assert (monet.group, monet.source, monet.dest) == ("artist", 0, 1)
    assert [draw.prompt for draw in monet.templates] == ["by Monet"]
    assert [draw.prompt for draw in monet.sentences] == ["a famous painting by Monet"]
    assert (update.group, update.source, update.dest) == ("object", 0, 1)
    assert [draw.prompt for draw in update.templates] == ["a photo of o0"]
    assert update.sentences[0].prompt == "A close-up of a o0 in soft morning light."
    assert update.own[0] == update.sentences[0]._replace(
        prompt="A close-up of a o1 in soft morning light."
    )
    assert (wrong.source, wrong.dest) == (None, 3)
    assert "oh three" in wrong.templates[0].prompt
    assert "o3" in wrong.own[0].prompt
    assert len(PLAN.aice.skipped) == 1
    assert "nobody knows" in PLAN.aice.skipped[0]
    # 4 of AICE, 2 of the artist, 3 of the wrong name, held and told names.
    assert len(PLAN.draws()) == 4 + 2 + 3 + 4 + 2
    names = mixed.picture_names(PLAN)
    assert len(set(names.values())) == len(names) == 3 + 2 + 4


def reading(object_: int, artist: int, sure: float = 0.9) -> dict[str, np.ndarray]:
    found = {}
    for group, labels, top in (("object", len(OBJECTS), object_), ("artist", len(ARTISTS), artist)):
        found[group] = np.full(labels, (1 - sure) / (labels - 1))
        found[group][top % labels] = sure
    return found


def side(templates: list[int], sentences: list[int], own: list[int], held: list[bool]) -> dict:
    """Readings whose first choices these are, request by request, and right or not by name."""
    found: dict[Draw, dict[str, np.ndarray]] = {draw: reading(0, 0) for draw in PLAN.draws()}
    for one, *tops in zip(PLAN.judged, templates, sentences, own, strict=True):
        for draws, top in zip((one.templates, one.sentences, one.own), tops, strict=True):
            found |= {draw: reading(top, top) for draw in draws}
    for one, right in zip((*UNTOUCHED.held_out, *UNTOUCHED.protected), held, strict=True):
        top = one.label if right else 0
        found |= {draw: reading(top, top) for draw in one.draws}
    return found


def test_scores_by_hand() -> None:
    before = side([0, 0, 7], [0, 0, 7], [1, 1, 3], [True] * 6)
    after = side(
        [1, 5, 3],  # "art"; neither source nor destination; right.
        [0, 1, 7],  # Still Monet; the destination; still wrong.
        [1, 1, 4],  # The second object's own name is lost.
        [True, False, True, True, True, False],
    )
    found = mixed.score(PLAN, Readings(before, after))
    value = {name: figure["value"] for name, figure in found["edited"].items()}
    assert value["gone"] == pytest.approx(1.0)
    assert value["shown"] == pytest.approx(2 / 3)
    assert value["gone_unseen"] == pytest.approx(1 / 3)
    assert value["shown_unseen"] == pytest.approx(1 / 3)
    assert value["own"] == pytest.approx(1 / 2)
    assert value["acc_s"] == pytest.approx(3 / 4)
    assert (value["acc_s_object"], value["acc_s_artist"]) == (1 / 2, 1)
    assert value["acc_told"] == pytest.approx(1 / 2)
    assert value["h"] == pytest.approx(2 / (1 + 4 / 3))
    assert value["h_dest"] == pytest.approx(2 / (3 / 2 + 4 / 3))
    clean = {name: figure["value"] for name, figure in found["clean"].items()}
    assert (clean["gone"], clean["shown"], clean["acc_s"], clean["own"]) == (0, 0, 1, 1)
    # Two held objects, one of which became an edited one: as sure and as various as before.
    assert found["guard"]["object"] == {"broken": 0, "variety": pytest.approx(1), "intact": True}
    assert found["guard"]["intact"] is True
    assert found["aice"]["accuracy"]["acc_s"]["value"] == 1 / 2
    assert found["erase"]["style_left"]["value"] == 1  # The sentence.
    assert found["rectify"]["edit_right"]["value"] == 1
    monet, update, wrong = found["records"]
    assert monet["score"] == pytest.approx(0)
    assert update["score"] == pytest.approx(0.9 - 0.1 / 11)
    assert (monet["wanted"], wrong["gone"], wrong["own"]) == (None, 1, 0)
    assert "own" not in monet
    assert [one["after"] for one in found["held"]] == [1, 0, 1, 1]


def test_a_prompt_that_names_a_source_is_no_test_of_what_else_stays() -> None:
    untouched = split_untouched(REQUESTS, GROUPS, 2, 5)  # Every name in all five sentences.
    plan = mixed.make_plan(REQUESTS, untouched, GROUPS, CONFIG, ["o0", "Light", "wood"])
    assert plan.untouched is untouched
    for whole, part in zip(untouched.held_out, plan.apart, strict=True):
        left = [draw for draw in whole.draws if "morning light" not in draw.prompt]
        assert list(part.draws) == left
        assert len(whole.draws) - len(left) == (whole.group == "object")
    assert [one for one in plan.apart if one.name == untouched.held_out[0].name]
    held = untouched.held_out
    every = {draw: reading(one.label, one.label) for one in held for draw in one.draws}
    before = {draw: reading(0, 0) for draw in plan.draws()} | every
    lost = {draw: reading(0, 0) for draw in every if "morning light" in draw.prompt}
    found = mixed.score(plan, Readings(before, before | lost))["edited"]
    assert found["stayed"]["value"] == pytest.approx(18 / 20)  # Two of four names lose one of five.
    assert found["stayed_unnamed"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    nothing = mixed.make_plan(REQUESTS, untouched, GROUPS, CONFIG, ["a", "the", "image"])
    assert [one.group for one in nothing.apart] == ["artist"] * 2
    assert {draw.prompt.split()[0] for one in nothing.apart for draw in one.draws} == {"art"}


def test_a_model_that_always_draws_one_thing_is_not_intact() -> None:
    before = side([0, 0, 7], [0, 0, 7], [1, 1, 3], [True] * 6)
    one = {draw: reading(5, 1) for draw in PLAN.draws()}
    found = mixed.verdict(UNTOUCHED.held_out, Readings(before, one))
    assert found["object"]["variety"] < 0.6
    assert found["artist"]["broken"] == 0
    assert found["intact"] is (found["object"]["intact"] and found["artist"]["intact"])
