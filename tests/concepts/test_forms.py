"""Other forms of names: real English, no name twice, nothing else of a request changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emcid_jax.concepts.forms import FORMS, joined, plural, spaced, with_forms
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import RequestsConfig
from emcid_jax.workflow.inputs import read_requests

TEMPLATES = ("a photo of {}", "{}")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tench", "tenches"),
        ("grey wolf", "grey wolves"),
        ("mouse", "mice"),
        ("daisy", "daisies"),
        ("bass", "basses"),
        ("cup of tea", "cups of tea"),
        ("sunglasses", "sunglasses"),
        ("scales", "scales"),
    ],
)
def test_plurals_are_english(name: str, wanted: str) -> None:
    assert plural(name) == wanted


def test_words_are_joined_and_spaced() -> None:
    assert joined("great white shark") == "greatwhiteshark"
    assert spaced("sulphur-crested cockatoo") == "sulphur crested cockatoo"


def test_every_form_is_a_request_behind_its_own() -> None:
    asked = [
        EditRequest("toy shop", "sea-lion", TEMPLATES, seed=7, weight=2.0, source_id=3),
        EditRequest("Claude Monet", "art", TEMPLATES, task="erase"),
        EditRequest("leatherback", "leatherback turtle", TEMPLATES, task="rectify"),
    ]
    found = with_forms(asked, tuple(FORMS))
    assert [(one.source, one.dest) for one in found] == [
        ("toy shop", "sea-lion"),
        ("toy shops", "sea-lions"),
        ("toyshop", "sea-lion"),
        ("Claude Monet", "art"),
        ("leatherback", "leatherback turtle"),
        ("leatherbacks", "leatherback turtles"),
    ]
    assert [one for one in found if one in asked] == asked
    assert dataclasses.replace(found[2], source="toy shop") == asked[0]
    assert found[2].origin == "request, joined"


def test_a_name_of_the_list_is_not_asked_twice() -> None:
    asked = [EditRequest("owl", "wolf", TEMPLATES), EditRequest("Owls", "tench", TEMPLATES)]
    assert with_forms(asked, ["plural"]) == asked
    kept = [EditRequest("tench", "tenches", TEMPLATES, task="rectify")]
    assert with_forms(kept, ["plural"]) == kept


def test_the_setting_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("source,dest\ntench,wolf\nowl,bear\n")
    config = RequestsConfig(path=str(tmp_path / "list.csv"), count=1, forms=("plural",))
    assert [one.source for one in read_requests(config)] == ["tench", "tenches"]
