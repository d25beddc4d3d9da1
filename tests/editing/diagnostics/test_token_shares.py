"""Shares at tokens: with them, the edit's own offsets make up what the edited model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emcid_jax import api
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import SolverName, StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics.predicted_conflicts import clean_run, predict
from emcid_jax.editing.diagnostics.token_shares import gate_shares, writers, written_shares
from emcid_jax.editing.encoder.hidden_units import HEIGHT, make_units, with_units
from emcid_jax.editing.stage_two.gate_report import GateReport
from emcid_jax.editing.stage_two.solve import apply_edit
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from main_job import UNLIKE_CAPTIONS

BLOCK = 2
REQUESTS = [
    EditRequest(name, "goldfish", ("A photo of {}",), weight=weight)
    for name, weight in (("dog", 1.0), ("a female doctor", 2.0), ("snow", 0.5))
]
PROMPT = "a picture of a dog and a male doctor in the snow"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def bank(pipeline: Pipeline, random_bank: Callable[..., ConceptBank]) -> ConceptBank:
    starts = clean_run(pipeline.encoder, REQUESTS, (BLOCK,)).states
    return random_bank(REQUESTS, starts, memories.model_hashes(pipeline), BLOCK)


def outputs(pipeline: Pipeline, params: dict[str, Any], prompt: str) -> tuple[Any, Any]:
    """Output of the block at every token, and of its MLP."""
    model = pipeline.encoder.model
    width = params["text_model"]["encoder"]["layers.0"]["mlp"]["fc1"]["bias"].shape[0]
    config = model.config.__class__(**{**vars(model.config), "intermediate_size": width})
    ids = tokenize(pipeline.encoder.tokenizer, [prompt])
    with jax.default_matmul_precision("highest"):
        out = jax.jit(model.clone(config=config).apply)({"params": params}, ids)
    return np.asarray(out.hidden[BLOCK][0], np.float64), np.asarray(out.values[BLOCK][0])


@pytest.mark.parametrize("solver", ["ridge", "nullspace"])
def test_offsets_by_their_shares_are_what_one_layer_writes(
    pipeline: Pipeline, bank: ConceptBank, solver: SolverName
) -> None:
    config = StageTwoConfig(
        layers=(BLOCK,), preservation_weight=0.5, solver=solver, nullspace_energy=0.9
    )
    moments = api.second_moments(pipeline, UNLIKE_CAPTIONS, config)
    requests = [concept.request for concept in bank.concepts]
    found = writers(pipeline.encoder, requests, moments["text_encoder"], config)
    ids = tokenize(pipeline.encoder.tokenizer, [PROMPT])[0]
    shares = written_shares(pipeline.encoder, found, ids)

    edit = bank_solve.solve(bank, pipeline, moments, config)["text_encoder"]
    base = pipeline.params["text_encoder"]
    change = (
        outputs(pipeline, apply_edit(base, edit), PROMPT)[0] - outputs(pipeline, base, PROMPT)[0]
    )
    offsets = np.array([bank.records[c.memory].memory.delta for c in bank.concepts], np.float64)
    np.testing.assert_allclose(shares @ offsets, change, atol=2e-4 * np.abs(change).max())
    assert np.abs(shares).max() > 0.1


def test_several_layers_write_what_is_predicted(pipeline: Pipeline, bank: ConceptBank) -> None:
    config = StageTwoConfig(layers=(0, BLOCK), preservation_weight=0.5)
    moments = api.second_moments(pipeline, UNLIKE_CAPTIONS, config)["text_encoder"]
    requests = [concept.request for concept in bank.concepts]
    found = writers(pipeline.encoder, requests, moments, config)
    where = bank_solve.sites_of(bank, pipeline)
    (kept,) = predict(bank, pipeline.encoder, where, moments, config, ["a male doctor"]).kept
    prompt = "A photo of a male doctor"
    ids = tokenize(pipeline.encoder.tokenizer, [prompt])[0]
    last = len(pipeline.encoder.tokenizer([prompt])["input_ids"][0]) - 2
    offsets = np.array([bank.records[c.memory].memory.delta for c in bank.concepts], np.float64)
    change = written_shares(pipeline.encoder, found, ids)[last] @ offsets
    state = outputs(pipeline, pipeline.params["text_encoder"], prompt)[0][last]
    assert np.linalg.norm(change) / np.linalg.norm(state) == pytest.approx(kept.drift, rel=1e-3)


def test_answers_by_their_shares_are_what_units_add(pipeline: Pipeline) -> None:
    rng = np.random.default_rng(0)
    # Many gates with low thresholds, so that some are open, some shut and some between.
    answers = rng.normal(size=(40, 32))
    directions, thresholds = rng.normal(size=(40, 32)) / 8, rng.uniform(0, 0.5, 40)
    units = make_units(BLOCK, directions, np.zeros(32), thresholds, answers)
    gates = [GateReport(f"name {i}", 0.7, 1.0, 0.9, 0.0) for i in range(40)]
    gates.insert(7, GateReport("shared", 0.7, 1.0, 0.9, 0.0, shares="name 3"))
    ids = tokenize(pipeline.encoder.tokenizer, [PROMPT])[0]
    shares = gate_shares(pipeline.encoder, units, gates, ids)
    np.testing.assert_array_equal(shares[:, 7], shares[:, 3])
    shares = np.delete(shares, 7, axis=1)

    base = pipeline.params["text_encoder"]
    change = (
        outputs(pipeline, with_units(base, units), PROMPT)[1] - outputs(pipeline, base, PROMPT)[1]
    )
    # Beyond the ramp's end it overshoots by less than half a percent of the answer.
    np.testing.assert_allclose(shares @ answers, change, atol=0.02 * np.abs(change).max())
    assert {0.0, 1.0} <= set(np.round(shares, 2).ravel().tolist())
    assert ((shares > 0.05) & (shares < 0.95)).any()
    assert HEIGHT * np.abs(units.answers).max() == pytest.approx(np.abs(answers).max(), rel=1e-6)
