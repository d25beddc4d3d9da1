"""Names that nobody edits: which, how many, and what is drawn of them."""

from __future__ import annotations

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks import erase
from emcid_jax.evaluation.benchmarks.untouched_names import evenly, split_untouched
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import label_groups

OBJECTS = ["dog, hound", "cat", "crane", "crane, lifting machine", *(f"o{i}" for i in range(8))]
ARTISTS = ["Monet", "art", *(f"a{i}" for i in range(5))]
GROUPS = label_groups([*OBJECTS, *(f"artist: {name}" for name in ARTISTS)])
REQUESTS = [
    EditRequest("Hound", "o0", ("{}",)),  # By another name.
    EditRequest("something", "else", ("{}",), source_id=1, dest_id=5),  # By class id.
    EditRequest("Monet", "art", ("by {}",), task="erase"),
]


def test_half_is_told_and_half_is_judged() -> None:
    untouched = split_untouched(REQUESTS, GROUPS)
    # The dog, the cat, o0 and o1 are named; the second crane is found by no name of its own.
    assert untouched.to_protect == ("crane", "o3", "o5", "o7", "a0", "a2", "a4")
    assert [one.name for one in untouched.held_out] == ["o2", "o4", "o6", "a1", "a3"]
    assert [one.name for one in untouched.protected] == list(untouched.to_protect)
    first = untouched.held_out[0]
    assert (first.group, first.label) == ("object", 6)
    assert sorted(draw.prompt for draw in first.draws) == sorted(
        sentence.replace("{}", "o2") for sentence in SENTENCES
    )


def test_few_names_are_spread_and_each_takes_another_sentence() -> None:
    untouched = split_untouched(REQUESTS, GROUPS, count=2, prompts=1)
    assert [one.name for one in untouched.held_out] == ["o2", "o6", "a1", "a3"]
    assert [one.name for one in untouched.protected] == ["crane", "a0"]
    prompts = [draw.prompt for one in untouched.held_out for draw in one.draws]
    assert prompts == [
        SENTENCES[6 % 5].replace("{}", "o2"),
        SENTENCES[10 % 5].replace("{}", "o6"),
        erase.SENTENCES[3].replace("{}", "a1"),
        erase.SENTENCES[5 % 5].replace("{}", "a3"),
    ]


def test_evenly() -> None:
    assert evenly(range(10), 3) == [0, 4, 9]
    assert evenly("abc", 0) == evenly("abc", 5) == ["a", "b", "c"]
