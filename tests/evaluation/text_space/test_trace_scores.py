"""Causal tracing's arithmetic by hand, and names traced on the tiny model."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.encoder import blockwise, causal_tracing
from emcid_jax.evaluation.text_space import trace_prompts, trace_runs, trace_scores
from emcid_jax.evaluation.text_space.trace_scores import Finals
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.errors import UserError

NAMES = ("dog", "snow", "great white shark", "female doctor", "sports car")
TEMPLATES = ("{}", "a photo of a {} in the city")


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def test_recovery_by_hand() -> None:
    clean = np.array([[[0.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 8.0]]])
    corrupted = clean + np.array([2.0, 0.0])
    found = clean + np.array([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [3.0, 0.0]]])
    np.testing.assert_allclose(
        trace_scores.recovered(found, clean, corrupted), [[0.5, 0.0], [1.0, -0.5]]
    )
    # Name 0 in template 1 is at (0, 2), nearer to itself; far off it is nearer to the other.
    assert trace_scores.read_right(found, clean).all()
    found[0, 1] = 0.0, 5.0
    np.testing.assert_array_equal(trace_scores.read_right(found, clean), [[1, 0], [1, 1]])
    all_of_it = trace_scores.recovery(
        Finals(found, clean), Finals(clean, clean), Finals(*[corrupted] * 2)
    )
    assert all_of_it.end.value == pytest.approx(np.mean([0.5, -1.5, 1.0, -0.5]))
    assert all_of_it.subject.value == 1
    assert all_of_it.read.value == 0.75
    assert all_of_it.end.low is not None
    assert -0.5 <= all_of_it.end.low <= all_of_it.end.value


def test_windows_are_whole() -> None:
    assert trace_scores.whole_windows(4, (1, 3)) == [
        (0, 1), (1, 1), (2, 1), (3, 1), (0, 3), (1, 3),
    ]  # fmt: skip


def test_noise_stands_at_the_subject_and_nowhere_else(pipeline: Pipeline) -> None:
    subjects = trace_prompts.read_subjects(pipeline.encoder, NAMES, TEMPLATES)
    params = pipeline.params["text_encoder"]
    hidden = np.zeros((*subjects.ids.shape, 32), np.float32)
    noise = trace_prompts.with_noise(hidden, subjects, params, 2.0, seed=5)
    where = np.abs(noise).max(-1) > 0
    decoded = [
        pipeline.encoder.tokenizer.decode(ids[mask]).strip()
        for rows, masks in zip(subjects.ids, where, strict=True)
        for ids, mask in zip(rows, masks, strict=True)
    ]
    assert decoded == [name for name in NAMES for _ in TEMPLATES]
    shark = [noise[2, i][where[2, i]] for i in range(2)]
    np.testing.assert_array_equal(*shark)  # The same in every template.
    table = np.asarray(params["text_model"]["embeddings"]["token_embedding"]["embedding"])
    size = 2 * table[subjects.ids[where]].std()
    assert noise[where].std() == pytest.approx(size, rel=0.15)


def test_partners_have_as_many_tokens(pipeline: Pipeline) -> None:
    subjects = trace_prompts.read_subjects(pipeline.encoder, NAMES, TEMPLATES)
    lengths = (subjects.ends - subjects.starts)[:, 0]
    mine, swapped = trace_prompts.with_partners(subjects, 0)
    assert set(mine.names) == {
        name for name, n in zip(NAMES, lengths, strict=True) if (lengths == n).sum() > 1
    }
    assert sorted(map(str, swapped)) == sorted(map(str, mine.ids))  # Everyone is taken once.
    differs = swapped != mine.ids
    place = np.arange(mine.ids.shape[-1])
    inside = (place >= mine.starts[..., None]) & (place < mine.ends[..., None])
    assert not differs[~inside].any()
    assert differs.any(-1).all()
    with pytest.raises(UserError, match="no two names have equally many tokens"):
        trace_prompts.with_partners(
            trace_prompts.read_subjects(pipeline.encoder, NAMES[1:3], TEMPLATES), 0
        )


def test_traced_names_are_means_over_prompts(pipeline: Pipeline) -> None:
    subjects = trace_prompts.read_subjects(pipeline.encoder, NAMES, TEMPLATES)
    mine, swapped = trace_prompts.with_partners(subjects, 0)
    traced = trace_runs.prepare(pipeline.encoder, mine, swapped)
    assert traced.nothing.end.value == traced.nothing.subject.value == 0
    found = trace_runs.measure(traced, "mlp", range(1, 3))
    # The same, prompt for prompt.
    params, model = pipeline.params["text_encoder"], pipeline.encoder.model
    ids = jnp.asarray(mine.ids.reshape(-1, mine.ids.shape[-1]))
    position = jnp.asarray(mine.ends.reshape(-1) - 1)
    inputs = [
        blockwise.embed(model, params["text_model"]["embeddings"], one)
        for one in (ids, jnp.asarray(swapped.reshape(ids.shape)))
    ]
    (clean, parts), (corrupted, _) = (
        causal_tracing.run(model, params, one, ids, position) for one in inputs
    )
    inside = jnp.asarray([False, True, True, False])
    ends = causal_tracing.restore(model, params, inputs[1], ids, position, parts, "mlp", inside)
    for name, value in (("end", found.end.value), ("subject", found.subject.value)):
        goal, start, end = (np.asarray(getattr(one, name)) for one in (clean, corrupted, ends))
        shares = 1 - np.linalg.norm(end - goal, axis=1) / np.linalg.norm(start - goal, axis=1)
        assert value == pytest.approx(shares.mean(), abs=1e-4)
    top = trace_runs.measure(traced, "block", [3])
    assert top.subject.value == pytest.approx(1, abs=1e-5)
    assert top.end.value == pytest.approx(0, abs=1e-5)
