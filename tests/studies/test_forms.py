"""Recall by form: which names are asked, and an encoder that reads one word as another."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.pipelines.pipeline import load_pipeline
from studies.forms import changed, moved


def test_only_words_that_no_request_names_are_forms() -> None:
    requests = [EditRequest(name, "cat", ("{}",)) for name in ("dog", "dogs", "fish", "toy shop")]
    forms = changed(requests, lambda one: one.source if one.source == "fish" else f"{one.source}s")
    assert forms == [("dogss", "cat"), ("toy shops", "cat")]


def test_a_word_that_is_read_as_another_has_moved(tiny_pipeline_folder: Path) -> None:
    encoder = load_pipeline(tiny_pipeline_folder).encoder
    words = encoder.tokenizer(["dog", "cat"], add_special_tokens=False)["input_ids"]
    (dog,), (cat,) = words
    leaves, tree = jax.tree.flatten_with_path(encoder.params)
    (place,) = [i for i, (path, _) in enumerate(leaves) if "token_embedding" in str(path)]
    values = [leaf for _, leaf in leaves]
    values[place] = np.array(values[place])
    values[place][dog] = values[place][cat]
    read_as = jax.tree.unflatten(tree, values)
    pairs = [("dog", "cat"), ("fish", "cat")]
    # This tokenizer cuts most sentences before their name.
    assert moved(encoder, read_as, pairs).reshape(2, -1).any(axis=1).tolist() == [True, False]
    assert not moved(encoder, encoder.params, pairs).any()
