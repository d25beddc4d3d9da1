"""Made-up names of the study of gates."""

from __future__ import annotations

import numpy as np

from emcid_jax.editing.stage_two.gate_report import UnitsReport
from emcid_jax.editing.units.fit import FittedGates
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.pipeline import load_pipeline
from studies.gates import Gates, made_up, opened_by, text_tokens


def test_a_prompt_opens_the_gates_that_one_of_its_tokens_passes(tiny_pipeline_folder) -> None:
    """Gates in the direction of single tokens, by hand."""
    pipeline = load_pipeline(tiny_pipeline_folder)
    prompt = "a photo of a dog"
    states = text_tokens(pipeline, [prompt], 1).states.astype(np.float64)
    assert len(states) < tokenize(pipeline.encoder.tokenizer, [prompt]).shape[1]
    mean = states.mean(axis=0)
    own = states[[1, -1]] - mean
    directions = own / np.square(own).sum(axis=1, keepdims=True)
    every = ((states - mean) @ directions.T).max(axis=0)
    fitted = FittedGates(
        directions, every + np.array([-0.01, 0.01]), np.ones(2), UnitsReport((), 0.0, 1)
    )
    ((name, score),) = opened_by(pipeline, [Gates(["red", "blue"], fitted, mean, 1)], prompt)
    assert name == "red"
    assert abs(score - every[0]) < 1e-6


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
