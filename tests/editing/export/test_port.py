"""A bank on derived models: the same bits where it can be, its targets met where it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics.targets_reached import reach
from emcid_jax.editing.export import edit_file
from emcid_jax.editing.export import port as portability
from emcid_jax.editing.export.edit_file import EditFile
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError

BLOCK = 2
CONFIG = StageTwoConfig(layers=(1, BLOCK), preservation_weight=1e-3)
REQUESTS = [
    EditRequest("dog", "goldfish", ("A photo of {}",)),
    EditRequest("a female doctor", "goldfish", ("A photo of {}",)),
    EditRequest("snow", "goldfish", ("A photo of {}", "{}")),
]


def states(pipeline: Pipeline, params: dict) -> np.ndarray:
    """Output of block L at the subjects of all prompts, by the plain encoder."""
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, REQUESTS)
    ids = prompts.ids.reshape(-1, prompts.ids.shape[-1])
    out = pipeline.encoder.model.apply({"params": params}, jnp.asarray(ids))
    found = np.asarray(out.hidden[BLOCK], np.float64)
    return found[np.arange(len(ids)), prompts.positions.reshape(-1)].reshape(3, 2, -1)


def moments(pipeline: Pipeline) -> SecondMoments:
    rng = np.random.default_rng(1)
    samples = {layer: 0.1 * rng.standard_normal((400, 64)) for layer in CONFIG.layers}
    about = MomentProvenance(params_hash(pipeline.params["text_encoder"]), "", 1, CONFIG.layers)
    return SecondMoments({layer: k.T @ k / len(k) for layer, k in samples.items()}, 400, about)


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def concepts(base: Pipeline, random_bank: Callable[..., ConceptBank]) -> ConceptBank:
    model = memories.model_hashes(base)
    start = states(base, base.params["text_encoder"])[:, 0]
    return random_bank(REQUESTS, start, model, BLOCK)


@pytest.fixture(scope="module")
def edit(base: Pipeline, concepts: ConceptBank) -> tuple[EditFile, dict]:
    statistics = moments(base)
    statistics = {"text_encoder": statistics}
    solved = bank_solve.solve(concepts, base, statistics, CONFIG)["text_encoder"]
    model = memories.model_hashes(base)
    ledger = edit_file.make_ledger(
        concepts,
        model,
        statistics,
        CONFIG,
        {"text_encoder": solved.report},
        {"text_encoder": "?"},
    )
    return edit_file.pack(solved.deltas), ledger


def derived(base: Pipeline, block: int) -> Pipeline:
    """The base model with all weights of one block moved a little."""
    text = base.params["text_encoder"]
    rng = np.random.default_rng(2)
    encoder = dict(text["text_model"]["encoder"])
    encoder[f"layers.{block}"] = jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32),
        encoder[f"layers.{block}"],
    )
    return with_text_params(
        base, {"text_encoder": {"text_model": text["text_model"] | {"encoder": encoder}}}
    )


def refuse(_: Pipeline) -> SecondMoments:
    raise AssertionError("second moments are not needed")


def test_a_model_that_differs_above_the_block_takes_the_edit_as_it_is(
    base: Pipeline, concepts: ConceptBank, edit: tuple[EditFile, dict]
) -> None:
    other = derived(base, 3)
    assert portability.compare(base, other) == (False, False, (3,), False)
    found = portability.port(concepts, base, other, CONFIG, refuse, edit)
    assert found.how == "applied"
    again = portability.port(concepts, base, other, CONFIG, moments)
    assert again.how == "solved"
    assert found.content is edit[0]
    for name, array in edit[0].arrays.items():
        np.testing.assert_array_equal(again.content.arrays[name], array)
    assert found.reached == again.reached
    assert max(one.shift for one in found.reached) < 1e-5
    assert all(one.left < 0.05 for one in found.reached if one.elsewhere is None)
    assert found.report == again.report


def test_a_model_that_differs_below_is_solved_anew_and_meets_the_targets(
    base: Pipeline, concepts: ConceptBank, edit: tuple[EditFile, dict]
) -> None:
    other = derived(base, 1)
    assert portability.compare(base, other).blocks == (1,)
    found = portability.port(concepts, base, other, CONFIG, moments, edit)
    assert found.how == "solved"
    text = other.params["text_encoder"]
    as_it_is = portability.apply(other, edit[0], found.report)
    worse = {
        one.source: one.left
        for one in reach(concepts, other.encoder, bank_solve.sites_of(concepts, base), as_it_is)
    }
    alone = [one for one in found.reached if one.elsewhere is None]  # One prompt: met exactly.
    assert len(alone) == 2
    assert all(one.left < 0.05 < worse[one.source] for one in alone)

    # What is reported, from the plain encoder.
    edited = portability.apply(other, found.content, found.report)
    h0, h = (states(other, params) for params in (text, edited))
    order = {request.source: i for i, request in enumerate(REQUESTS)}
    for concept, one in zip(concepts.active, found.reached, strict=True):
        memory, i = concepts.records[concept.memory].memory, order[one.source]
        asked = memory.z - h0[i, 0]
        moved = h[i] - h0[i]
        size = np.linalg.norm(asked)
        assert one.asked == pytest.approx(size, rel=1e-4)
        assert one.left == pytest.approx(np.linalg.norm(asked - moved[0]) / size, abs=1e-4)
        if len(concept.request.templates) == 2:
            missed = np.linalg.norm(asked - moved[1]) / size
            assert one.elsewhere == pytest.approx(missed, abs=1e-4)
        cosine = asked @ moved[0] / size / np.linalg.norm(moved[0])
        assert one.cosine == pytest.approx(cosine, abs=1e-4)
        shift = np.linalg.norm(h0[i, 0] - (memory.z - memory.delta)) / np.linalg.norm(memory.delta)
        assert one.shift == pytest.approx(shift, rel=1e-3)
        assert shift > 0.01
    assert portability.as_json(found)["reached"][0]["left"] == max(o.left for o in found.reached)


def test_what_does_not_belong_together_is_refused(
    base: Pipeline, concepts: ConceptBank, edit: tuple[EditFile, dict]
) -> None:
    config = dataclasses.replace(base.encoder.model.config, num_hidden_layers=3)
    smaller = dataclasses.replace(
        base, texts={"text_encoder": base.encoder.model.clone(config=config)}
    )
    with pytest.raises(UserError, match="of another kind"):
        portability.port(concepts, base, smaller, CONFIG, moments, edit)
    with pytest.raises(UserError, match="found with another text_encoder"):
        portability.port(concepts, derived(base, 3), base, CONFIG, moments, edit)
    fewer = dataclasses.replace(concepts, concepts=concepts.concepts[:2])
    with pytest.raises(UserError, match="not an edit of this bank"):
        portability.port(fewer, base, derived(base, 3), CONFIG, refuse, edit)
