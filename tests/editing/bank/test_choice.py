"""Which concepts of a bank a command means."""

from __future__ import annotations

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank.choice import select
from emcid_jax.editing.bank.concepts import Concept


def test_a_name_picks_no_concept_that_is_erased_to_the_empty_prompt() -> None:
    fish = Concept(EditRequest("tench", "goldfish", ("a {}",)), "a" * 64)
    style = Concept(EditRequest("Claude Monet", "", ("a {}",), task="erase"), "b" * 64)
    assert select([fish, style], names=["tench"]) == [fish]
    assert select([fish, style], query="*monet*") == [style]
