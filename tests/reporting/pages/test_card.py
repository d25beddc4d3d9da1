"""The model card: what the Hub's own parser and a reader of the table find in it."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from emcid_jax.reporting.pages.card import CardData, base_license, card, is_card, metrics_of
from emcid_jax.runtime.errors import UserError

ACC_E = "Acc_e: an edited name is still read as itself"
AWKWARD = 'a | b <b> `c` *d* [e](f) \\ & $g$ "h" ~~i~~ é\nj'


@pytest.fixture
def data(small_ledger: Callable[..., Any]) -> CardData:
    ledger = small_ledger(3, 5)
    second = ledger["requests"][0] | {"source": AWKWARD, "dest": ["one", "two|three"]}
    ledger["requests"].append(second | {"task": "erase", "weight": 2.0})
    return CardData(
        "lora", ("lora.safetensors",), ledger, "some/base", "openrail++", place="me/mine"
    )


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, read as GitHub does: entities come last."""
    (below,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    rows = [line for line in below.splitlines() if line.startswith("|")]
    return [[html.unescape(cell.strip()) for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_hub_reads_its_fields(data: CardData) -> None:
    found = ModelCard(card(data).decode()).data.to_dict()
    assert found["base_model"] == "some/base"
    assert found["base_model_relation"] == "adapter"
    assert found["license"] == "openrail++"
    assert found["library_name"] == "diffusers"
    assert found["pipeline_tag"] == "text-to-image"
    assert set(found["tags"]) == {"emcid", "concept-editing", "lora"}
    whole = dataclasses.replace(data, kind="folder", base_model="", license="")
    text = card(whole).decode()
    assert (
        not {"base_model", "base_model_relation", "license"} & ModelCard(text).data.to_dict().keys()
    )
    assert "Its licence, which is not known" in text


def test_every_request_is_a_row_as_it_was_written(data: CardData) -> None:
    text = card(data).decode()
    assert table(text, "What is edited") == [
        ["erase", " ".join(AWKWARD.split()), "one / two|three", "2", "0.5"],
        ["update", "dog", "cat", "1", "0.5"],
    ]
    assert "<b>" not in text
    assert data.ledger["base"]["text_encoder"] in text
    assert (
        "blocks 3, 5, statistics of 7 captions; distance to the targets 2 before, 1 after" in text
    )
    assert 'load_lora_weights("me/mine", weight_name="lora.safetensors")' in text


def test_scores_are_those_of_just_this_edit(data: CardData, tmp_path: Path) -> None:
    edit, ledger = tmp_path / "edit.safetensors", data.ledger
    assert metrics_of(edit, ledger) == {}
    metric = {"value": 0.25, "low": None, "high": 0.5, "count": 3, "bound": 1.0}
    metrics = {
        "stage_two": ledger["report"],
        "aice": {"holdout_delta": metric | {"value": -0.125}},
        "accuracy": {"pre_acc_e": metric, "acc_e": metric},
        "erase": {"metrics": {"style_forget": metric}},
    }
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(metrics))
    found = dataclasses.replace(data, metrics=metrics_of(edit, ledger))
    assert table(card(found).decode(), "Scores") == [
        ["AICE", "Specificity: Holdout Delta", "−0.125", "–", "0.500", "3", "nearer 0"],
        ["erasure", ACC_E, "0.250", "–", "0.500", "3", "lower"],
        ["erase", "style_forget", "0.250", "–", "0.500", "3", ""],
    ]
    assert "None were found" in card(data).decode()
    file.write_text(json.dumps(metrics | {"stage_two": {"layers": []}}))  # Of another edit.
    assert metrics_of(edit, ledger) == {}
    file.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json"):
        metrics_of(edit, ledger)


def test_a_changed_card_is_known(data: CardData) -> None:
    content = card(data)
    assert is_card(content)
    assert card(data) == content
    assert not is_card(content.replace(b"dog", b"cow"))
    assert not is_card(b"---\nlicense: mit\n---\n# mine\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("---\nlicense: openrail++\ntags:\n- a\n---\n# Base\n", "openrail++"),
        ("---\ntags: [a]\n---\n", ""),
        ("---\nlicense: [mit]\n---\n", ""),
        ("---\nlicense: {\n---\n", ""),
        ("---\n- a\n---\n", ""),
        ("# license: mit\n", ""),
        ("---\nlicense: mit\n", ""),
    ],
)
def test_the_base_models_licence(text: str, wanted: str, tmp_path: Path) -> None:
    assert base_license(tmp_path) == ""
    (tmp_path / "README.md").write_text(text)
    assert base_license(tmp_path) == wanted
