"""Recall by form: which names are asked, and encoders that read one word as another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks.other_forms import FORMS, measure, reads_as_told
from emcid_jax.evaluation.judges.labels import label_groups
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

GROUPS = label_groups(["dog, canine", "cat", "fish, dog", "artist: Monet"])


def request(source: str, dest: str = "cat", **more: Any) -> EditRequest:
    return EditRequest(source, dest, ("a photo of {}",), **more)


def read_as(pipeline: Pipeline, word: str, other: str, part: str) -> Pipeline:
    """A model whose text encoder `part` takes one token for another."""
    (encoder,) = [one for one in pipeline.encoders if one.name == part]
    (a,), (b,) = encoder.tokenizer([word, other], add_special_tokens=False)["input_ids"]
    leaves, tree = jax.tree.flatten_with_path(pipeline.params[part])
    values = [np.array(leaf) if "token_embedding" in str(path) else leaf for path, leaf in leaves]
    for (path, _), value in zip(leaves, values, strict=True):
        if "token_embedding" in str(path):
            value[a] = value[b]
    edited: Mapping[str, Any] = jax.tree.unflatten(tree, values)
    return dataclasses.replace(pipeline, params={**pipeline.params, part: edited})


def test_the_forms_of_a_name() -> None:
    made = {form: change("grey wolf") for form, change in FORMS.items()}
    assert made == {
        "plural": "grey wolves",
        "possessive": "grey wolf's",
        "hyphen for space": "grey-wolf",
        "space for hyphen": "grey wolf",
        "written together": "greywolf",
        "first word left out": "wolf",
        "two letters swapped": "gery wolf",
    }
    assert [FORMS["two letters swapped"](name) for name in ("a b", "ab c")] == ["a b", "ba c"]


def test_a_word_that_is_read_as_another_reads_as_told(tiny_pipeline_folder: Path) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    edited = read_as(pipeline, "dog", "cat", pipeline.encoder.name)
    pairs = [(request("dog"), "dog"), (request("dog"), "fish")]
    found = reads_as_told(pipeline.encoders, edited.params, pairs)
    # This tokenizer cuts most sentences before their name.
    assert found[0] > 0
    assert found[1] == 0
    assert not reads_as_told(pipeline.encoders, pipeline.params, pairs).any()


def test_forms_that_name_nothing_else_are_asked_and_a_synonym_that_the_judge_knows(
    tiny_pipeline_folder: Path,
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    edited = read_as(pipeline, "dog", "cat", pipeline.encoder.name)
    requests = [
        request("dog"),
        request("dogs"),  # The plural of the first.
        request("Monet", "art", task="erase"),
        request("toy shop", "", task="erase"),  # Nothing that it could read as.
    ]
    found = {one.form: one for one in measure(pipeline, edited, requests, GROUPS)}
    names = {form: one.names for form, one in found.items()}
    assert names == {
        "the name itself": 3,
        "plural": 1,  # "Monets"; "dogs" is named, and is its own plural.
        "possessive": 3,
        "two letters swapped": 3,
        "another name of the same thing": 1,  # "canine".
    }
    assert found["the name itself"].recall > 0
    assert found["another name of the same thing"].recall == 0
    assert measure(pipeline, pipeline, requests, GROUPS) == ()
    assert measure(pipeline, edited, requests[3:], GROUPS) == ()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_of_two_encoders_those_that_were_edited_count(tiny_xl_folder: Path, part: str) -> None:
    pipeline = load_pipeline(tiny_xl_folder)
    edited = read_as(pipeline, "dog", "cat", part)
    found = {one.form: one.recall for one in measure(pipeline, edited, [request("dog")], GROUPS)}
    (encoder,) = [one for one in pipeline.encoders if one.name == part]
    alone = reads_as_told([encoder], edited.params, [(request("dog"), "dog")])
    assert found["the name itself"] == alone[0] > 0
