"""Results are made once, and the oldest go first."""

from __future__ import annotations

from emcid_jax.explore.kept import Kept


def test_the_value_that_was_not_asked_for_longest_is_made_again() -> None:
    made: list[str] = []
    kept: Kept[str] = Kept(2)

    def get(key: str) -> str:
        return kept.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
