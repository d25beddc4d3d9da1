from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.concepts.conflicts import find_conflicts
from emcid_jax.concepts.names import invisible, normalised, stripped, visible
from emcid_jax.concepts.readers.literal_lists import literal_list
from emcid_jax.concepts.requests import EditRequest, RequestError, with_validation
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.evaluation.judges.labels import label_groups

INVISIBLE = "\u200b\u200d\u200e\u2060\ufeff\u00ad\U000e0067"


@given(
    name=st.text(max_size=6),
    hidden=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(INVISIBLE))),
)
def test_what_nobody_sees_makes_no_difference(name: str, hidden: list[tuple[int, str]]) -> None:
    other = name
    for place, character in hidden:
        other = other[:place] + character + other[place:]
    assert visible(other) == visible(name)
    assert normalised(other) == normalised(name) == normalised(normalised(name))
    assert stripped(f"\u200b {name}\ufeff\t\x1b") == stripped(name)
    assert bool(invisible(visible(name))) is any(
        unicodedata.category(one) == "Cc" and one not in "\t\n\r" for one in visible(name)
    )


def test_invisible_characters_are_named() -> None:
    assert invisible("a\u200bb\u200b\x1b\n") == "U+200B, U+001B"
    assert invisible("żółw 🐈") == ""


def ask(source: str, dest: str, templates: tuple[str, ...] = OBJECT_TEMPLATES) -> EditRequest:
    return EditRequest(source, dest, templates)


def test_conflicts_and_look_ups_see_through_them() -> None:
    (conflict,) = find_conflicts([ask("ten\u200bch", "a"), ask("tench", "b")])
    assert conflict.kind == "contradiction"
    (conflict,) = find_conflicts([ask("tench", "Ten\u00adch")])
    assert conflict.kind == "self"
    assert label_groups(["hen", "Tiger cat, tabby"])["object"].find("tiger\u200b  CAT") == 1
    (joined,) = with_validation(
        [ask("a\u200bb", "c")], [EditRequest("ab", "c", ("{}",), validation_templates=("x",))]
    )
    assert joined.validation_templates == ("x",)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (("tench\u200b", "a"), "source: has an invisible character at an end"),
        (("\u2060", "a"), "source: is empty"),
        (("a", "b\x1bc"), r"dest: holds a control character \(U\+001B\)"),
        (("a\ud800b", "c"), r"source: holds half of a surrogate pair \(U\+D800\)"),
        (("a", "b", ("x\0 {}",)), r"templates: holds a control character \(U\+0000\)"),
    ],
)
def test_requests_made_in_python_are_held_against_the_same(fields: tuple, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        ask(*fields)


@given(
    entries=st.lists(
        st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(10**9), 10**9)
    )
)
def test_lists_in_a_cell_are_what_python_writes(entries: list[str | int]) -> None:
    assert literal_list(repr(entries)) == entries


@given(
    text=st.text(st.sampled_from("[]'\",\\ x01-.e{}u"), max_size=12).map(lambda text: f"[{text}]")
)
def test_any_cell_is_a_list_or_none(text: str) -> None:
    found = literal_list(text)
    assert found is None or isinstance(found, list)


@pytest.mark.parametrize(
    "text",
    ["", "3", "[", "['a' 'b']", "['a',,]", "[a]", "['\\x']", "[" * 9999, "[1" + "+1" * 9999 + "]"],
)
def test_what_is_no_list(text: str) -> None:
    assert literal_list(text) is None
