"""Predictions from keys: exact where one layer is written, against the solve itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import SolverName, StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.stage_two.solve import apply_edit
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

BLOCK = 2
SITES = (Site("text_encoder", BLOCK, 32),)
KEEP = ("cat", "beach", "a male doctor")
TEMPLATES = ("A photo of {}",)
REQUESTS = [
    EditRequest(name, "goldfish", TEMPLATES, weight=weight)
    for name, weight in (("dog", 1.0), ("a female doctor", 2.0), ("snow", 1.0), ("tench", 0.5))
]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def states(pipeline: Pipeline, params: dict, requests: list[EditRequest]) -> np.ndarray:
    """Output of block L at the subject of prompt 0, by the plain encoder."""
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, requests)
    out = pipeline.encoder.model.apply({"params": params}, jnp.asarray(prompts.ids[:, 0]))
    hidden = np.asarray(out.hidden[BLOCK], np.float64)
    return hidden[np.arange(len(requests)), prompts.positions[:, 0]]


@pytest.fixture(scope="module")
def concepts(pipeline: Pipeline, random_bank: Callable[..., ConceptBank]) -> ConceptBank:
    """A bank whose offsets are random and whose z are the true states plus these."""
    model = memories.model_hashes(pipeline)
    start = states(pipeline, pipeline.params["text_encoder"], REQUESTS)
    return random_bank(REQUESTS, start, model, BLOCK)


def moments(pipeline: Pipeline, layers: tuple[int, ...]) -> SecondMoments:
    rng = np.random.default_rng(1)
    samples = {layer: 0.1 * rng.standard_normal((400, 64)) for layer in layers}
    about = MomentProvenance(params_hash(pipeline.params["text_encoder"]), "", 1, layers)
    return SecondMoments({layer: k.T @ k / len(k) for layer, k in samples.items()}, 400, about)


@pytest.mark.parametrize(
    ("strength", "solver"),
    [(1.0, "ridge"), (0.5, "ridge"), (1.0, "ridge+preserve"), (1.0, "nullspace")],
)
def test_with_one_layer_the_prediction_is_what_the_solve_does(
    pipeline: Pipeline, concepts: ConceptBank, strength: float, solver: SolverName
) -> None:
    config = StageTwoConfig(
        layers=(BLOCK,),
        preservation_weight=5.0,
        solver=solver,
        preserve=("beach",) if solver == "ridge+preserve" else (),
        nullspace_energy=0.9,
    )
    scaled = tuple(dataclasses.replace(c, strength=strength) for c in concepts.concepts)
    concepts = dataclasses.replace(concepts, concepts=scaled)
    statistics = moments(pipeline, (BLOCK,))
    found = predicted_conflicts.predict(concepts, pipeline.encoder, SITES, statistics, config, KEEP)

    base = pipeline.params["text_encoder"]
    given = {"text_encoder": statistics}
    solved = bank_solve.solve(concepts, pipeline, given, config)["text_encoder"]
    edited = apply_edit(base, solved)
    kept = [EditRequest(name, "goldfish", TEMPLATES) for name in KEEP]
    before, after = (states(pipeline, params, kept) for params in (base, edited))
    drift = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert [n.name for n in found.kept] == [KEEP[i] for i in np.argsort(-drift)]
    np.testing.assert_allclose([n.drift for n in found.kept], np.sort(drift)[::-1], rtol=1e-3)

    requests = [concept.request for concept in concepts.concepts]
    before, after = (states(pipeline, params, requests) for params in (base, edited))
    wanted = strength * np.array([concepts.records[c.memory].memory.delta for c in scaled])
    missed = np.linalg.norm(after - before - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(
        [dict(found.unmet)[request.source] for request in requests], missed, rtol=1e-3, atol=1e-5
    )
    assert missed.max() > 0.01


def test_neighbours_are_nearest_in_the_metric_of_the_second_moment(
    pipeline: Pipeline, concepts: ConceptBank
) -> None:
    config = StageTwoConfig(layers=(0, BLOCK), preservation_weight=5.0)
    statistics = moments(pipeline, (0, BLOCK))
    found = predicted_conflicts.predict(concepts, pipeline.encoder, SITES, statistics, config, KEEP)
    requests = [c.request for c in concepts.concepts]
    kept = [EditRequest(name, "goldfish", TEMPLATES) for name in KEEP]
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, [*requests, *kept])
    out = pipeline.encoder.model.apply(
        {"params": pipeline.params["text_encoder"]}, jnp.asarray(prompts.ids[:, 0])
    )
    total = 0.0
    for layer in (0, BLOCK):
        keys = np.asarray(out.keys[layer], np.float64)
        keys = keys[np.arange(len(keys)), prompts.positions[:, 0]]
        inner = keys @ np.linalg.inv(statistics.moments[layer]) @ keys.T
        size = np.sqrt(np.diag(inner))
        total = total + inner / size[:, None] / size / 2
    for neighbour in found.kept:
        row = total[len(requests) + KEEP.index(neighbour.name), : len(requests)]
        assert neighbour.nearest == requests[int(row.argmax())].source
        assert neighbour.similarity == pytest.approx(row.max(), rel=1e-4)


def test_later_layers_are_asked_for_what_earlier_ones_leave(
    pipeline: Pipeline, concepts: ConceptBank
) -> None:
    config = StageTwoConfig(layers=(0, BLOCK), preservation_weight=5.0)
    statistics = moments(pipeline, (0, BLOCK))
    found = predicted_conflicts.predict(concepts, pipeline.encoder, SITES, statistics, config)
    requests = [c.request for c in concepts.concepts]
    keys = predicted_conflicts.clean_run(pipeline.encoder, requests, (0, BLOCK)).keys
    offsets = np.array([concepts.records[c.memory].memory.delta for c in concepts.concepts], "f8")
    weights = np.diag([request.weight for request in requests])
    left = offsets
    for layer, share in ((0, 0.5), (BLOCK, 1.0)):
        K = keys[layer].T
        system = 5.0 * statistics.moments[layer] + K @ weights @ K.T
        left = left - (share * left.T @ weights @ K.T @ np.linalg.solve(system, K)).T
    shares = np.linalg.norm(left, axis=1) / np.linalg.norm(offsets, axis=1)
    for request, share in zip(requests, shares, strict=True):
        assert dict(found.unmet)[request.source] == pytest.approx(share, rel=1e-6)


def test_collisions_rank_disagreement_first() -> None:
    similarity = np.array([[1, 0.95, 0.99], [0.95, 1, 0.2], [0.99, 0.2, 1]])
    targets = np.array([[1, -0.5, 1.0], [-0.5, 1, 0], [1.0, 0, 1]])
    found = predicted_conflicts.collisions(["a", "b", "c"], similarity, targets)
    assert [pair.sources for pair in found] == [("a", "b"), ("a", "c")]
    assert found[0].targets == -0.5


def test_contradictions_among_names() -> None:
    requests = [EditRequest("a", "b", TEMPLATES), EditRequest("b", "c", TEMPLATES)]
    kept, chain = predicted_conflicts.contradictions(requests, ["A", "x"])
    assert kept == "'A' is edited and to be kept"
    assert "is itself edited" in chain
