"""Made-up names of the study of gates."""

from __future__ import annotations

from studies.gates import made_up


def test_made_up_names_are_pairs_of_the_captions_words() -> None:
    captions = ["a red fish, 2 boats", "the old house"]
    found = made_up(captions, 12)
    assert len(set(found)) == 12
    assert {word for name in found for word in name.split()} <= {
        "a",
        "red",
        "boats",
        "the",
        "old",
        "house",
    }
    assert all(len(set(name.split())) == 2 for name in found)
    assert made_up(captions, 12) == found
