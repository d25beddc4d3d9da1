"""Cut, grouped and padded prompts against the whole encoder, one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.encoder import whole_prompts
from emcid_jax.editing.encoder.whole_prompts import Prompts
from emcid_jax.pipelines.pipeline import load_pipeline, tokenize

PROMPTS = ["", "a dog", "a photo of a great white shark in the water of the city", "snow", "art"]


def test_states_and_drift_are_those_of_whole_prompts(
    tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_prompts, "ROWS", 2)
    pipeline = load_pipeline(tiny_pipeline_folder)
    base = pipeline.params["text_encoder"]
    other = jax.tree.map(lambda leaf: leaf * 1.1, base)
    ids = tokenize(pipeline.encoder.tokenizer, PROMPTS)
    positions = np.array([1, 2, 5, 1, 1])
    prompts = Prompts(ids, positions)
    found = whole_prompts.text_states(pipeline.encoder, other, prompts, 1)
    sets = [Prompts(*(part[some] for part in prompts)) for some in (slice(2), slice(2, None))]
    split = whole_prompts.text_changes(pipeline.encoder, base, other, sets, 1)
    assert [len(part.drift) for part in split] == [2, 3]
    change = jax.tree.map(lambda *parts: np.concatenate(parts), *split)
    with jax.default_matmul_precision("highest"):
        old, new = (
            pipeline.encoder.model.apply({"params": params}, jnp.asarray(ids))
            for params in (base, other)
        )
    for i, prompt in enumerate(PROMPTS):
        end = ids[i].tolist().index(pipeline.encoder.tokenizer.eos_token_id)
        before, after = (
            np.asarray(out.last_hidden_state[i, : end + 1], np.float64) for out in (old, new)
        )
        for states, out, last in (
            (found, new, after[-1]),
            (change.before, old, before[-1]),
            (change.after, new, after[-1]),
        ):
            np.testing.assert_allclose(states.state[i], out.hidden[1][i, positions[i]], atol=1e-5)
            np.testing.assert_allclose(states.pooled[i], last, atol=1e-5)
        wanted = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert change.drift[i] == pytest.approx(wanted, rel=1e-4), prompt
        assert wanted > 1e-3
