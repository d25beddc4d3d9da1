from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.templates import TEMPLATE_SETS, fill, slot_count, template_from

braceless = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]))


@given(before=braceless, after=braceless, name=st.text())
@settings(deadline=None)
def test_fill_equals_plain_concatenation(before: str, after: str, name: str) -> None:
    prompt, start, end = fill(before + "{}" + after, name)
    assert prompt == before + name + after
    assert (prompt[:start], prompt[start:end], prompt[end:]) == (before, name, after)


def test_fill_leaves_other_braces_and_literal_sentences_alone() -> None:
    assert fill("{0} and {} and {{x}}", "a {b}").prompt == "{0} and a {b} and {{x}}"
    assert fill("Broccoli in a pan.", "broccoli") == ("Broccoli in a pan.", 0, 0)


def test_a_name_that_holds_a_slot_is_filled_once() -> None:
    assert fill("an image of {}", "{} {}") == ("an image of {} {}", 12, 17)


@given(before=braceless, name=braceless.filter(bool))
@settings(deadline=None)
def test_template_from_undoes_fill_where_the_name_ends_the_prompt(before: str, name: str) -> None:
    # Overlaps such as "aa" in "a" + "aa" still give a template that fills to the same prompt.
    template = template_from(before + name, name)
    assert slot_count(template) == 1
    assert fill(template, name).prompt == before + name
    assert template == before + "{}"


@pytest.mark.parametrize(
    ("prompt", "name", "template"),
    [
        ("Art inspired by Art", "Art", "Art inspired by {}"),
        ("a chef digital ar", "a chef", "{} digital ar"),
        ("nothing of it", "a chef", "nothing of it"),
        ("an empty name", "", "an empty name"),
    ],
)
def test_template_from_examples(prompt: str, name: str, template: str) -> None:
    assert template_from(prompt, name) == template


def test_published_sets_have_one_slot_each() -> None:
    assert all(slot_count(text) == 1 for texts in TEMPLATE_SETS.values() for text in texts)
