"""Offsets at several tokens: where they are, and that an edit brings each of them to its target."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.memories import Memory, Record
from emcid_jax.editing.diagnostics.targets_reached import reach
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.stage_one import edited_tokens
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

LAYERS, BLOCK = (1, 2), 2
COUNTS = (1, 4, 2)
REQUESTS = [
    EditRequest("great white shark", "a goldfish", ("a photo of {} at sea",)),
    EditRequest("tench", "a dog", ("{}",)),
    EditRequest("snow", "", ("the {} of today",), "erase"),
]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def places(pipeline: Pipeline, request: EditRequest, count: int) -> tuple[np.ndarray, list[int]]:
    """Ids of its prompt, padded as the pipeline does, and its edited tokens, by searching."""
    prompt = request.templates[0].format(request.source)
    ids = pipeline.encoder.tokenizer(prompt, padding="max_length").input_ids
    end = ids.index(pipeline.encoder.tokenizer.eos_token_id)
    _, stop = spans.subject_span(pipeline.encoder.tokenizer, prompt, request.source)
    return np.array(ids), [stop - 1, *range(end, end + count - 1)]


def test_rows_are_subject_end_and_padding(pipeline: Pipeline) -> None:
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, REQUESTS)
    rows = edited_tokens.rows(prompts, pipeline.encoder.tokenizer.eos_token_id, COUNTS)
    wanted = [
        (*places(pipeline, request, count)[0].tolist(), place)
        for request, count in zip(REQUESTS, COUNTS, strict=True)
        for place in places(pipeline, request, count)[1]
    ]
    found = np.concatenate([rows.ids[:, 0], rows.positions], axis=1)
    np.testing.assert_array_equal(found, wanted)
    assert rows.mask.shape == (sum(COUNTS), 1)
    assert rows.mask.all()


def test_an_edit_brings_every_token_to_its_target(pipeline: Pipeline) -> None:
    """Memories of one, four and two tokens in one solve that hardly preserves anything."""
    dim, params = pipeline.encoder.model.config.hidden_size, pipeline.params["text_encoder"]
    rng, records, targets = np.random.default_rng(0), [], []
    for request, count in zip(REQUESTS, COUNTS, strict=True):
        ids, tokens = places(pipeline, request, count)
        hidden = pipeline.encoder.model.apply({"params": params}, jnp.asarray(ids[None])).hidden[
            BLOCK
        ]
        delta = 0.3 * rng.standard_normal((count, dim)).astype(np.float32)
        targets.append(np.asarray(hidden)[0, tokens] + delta)
        about = memories.provenance(
            request,
            StageOneConfig(layer=BLOCK, edited_tokens=count),
            memories.model_hashes(pipeline),
        )
        losses = np.zeros(4, np.float32)
        memory = Memory(targets[-1].ravel(), delta.ravel(), losses, losses, losses)
        records.append(Record(about, memory, {}))
    concepts = concept_bank.of_requests(REQUESTS, records)
    keys = {layer: rng.standard_normal((400, 64)) for layer in LAYERS}
    about = MomentProvenance(params_hash(params), "", 1, LAYERS)
    moments = SecondMoments({layer: k.T @ k / len(k) for layer, k in keys.items()}, 400, about)
    config = StageTwoConfig(layers=LAYERS, preservation_weight=1e-9)
    solved = bank_solve.solve(concepts, pipeline, {"text_encoder": moments}, config)["text_encoder"]
    assert solved.report.distance_after < 1e-4 * solved.report.distance_before

    edited = stage_two.apply_edit(params, solved)
    for request, count, wanted in zip(REQUESTS, COUNTS, targets, strict=True):
        ids, tokens = places(pipeline, request, count)
        hidden = pipeline.encoder.model.apply({"params": edited}, jnp.asarray(ids[None])).hidden[
            BLOCK
        ]
        np.testing.assert_allclose(np.asarray(hidden)[0, tokens], wanted, atol=1e-3)

    # A report is about the subject.
    for found in reach(concepts, pipeline.encoder, bank_solve.sites_of(concepts, pipeline), edited):
        count = COUNTS[[request.source for request in REQUESTS].index(found.source)]
        memory = next(r.memory for r in records if r.memory.delta.size == count * dim)
        assert found.left < 1e-3
        np.testing.assert_allclose(found.asked, np.linalg.norm(memory.delta[:dim]), rtol=1e-4)
