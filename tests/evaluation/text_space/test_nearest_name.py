"""Which name a prompt reads as, against single prompts of the plain encoder."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.text_space import nearest_name
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize

KEEP = ("cat", "Dog", "snow", "beach", "a nurse", "tench", "goldfish")


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def test_names_read_as_the_nearest_clean_ones(pipeline: Pipeline) -> None:
    requests = [EditRequest("dog", "city", ("{}",)), EditRequest("shark", "goldfish", ("{}",))]
    reader = nearest_name.make_reader(pipeline.encoder, requests, KEEP, "a picture of {}")
    assert reader.names == ("dog", "shark", "city", "goldfish", *KEEP[:1], *KEEP[2:-1])
    assert [reader.names[i] for i in reader.kept] == ["cat", *KEEP[2:]]  # The dog is edited.
    params = pipeline.params["text_encoder"]
    same = reader.read(params)
    assert tuple(same) == pytest.approx((0, 1, 1, 1, 0), abs=1e-5)
    assert same.both == 0.5

    rng = np.random.default_rng(0)
    other = jax.tree.map(
        lambda leaf: leaf * (1 + 0.5 * rng.standard_normal(leaf.shape).astype(np.float32)), params
    )
    found = reader.read(other)
    prompts = [f"a picture of {name}" for name in reader.names]
    ids = jnp.asarray(tokenize(pipeline.encoder.tokenizer, prompts))
    forward = jax.jit(lambda one: pipeline.encoder.model.apply({"params": one}, ids).pooled)
    clean, edited = (
        dict(zip(reader.names, np.asarray(forward(one)), strict=True)) for one in (params, other)
    )

    def read(name: str) -> str:
        return min(clean, key=lambda one: float(np.linalg.norm(clean[one] - edited[name])))

    kept = ["cat", *KEEP[2:]]
    pairs = {"dog": "city", "shark": "goldfish"}
    assert found.edited == np.mean([read(a) == b for a, b in pairs.items()])
    assert found.source == np.mean([read(a) == a for a in pairs])
    assert found.kept == pytest.approx(np.mean([read(name) == name for name in kept]))
    assert found.kept < 1
    gaps = [
        np.linalg.norm(edited[a] - clean[b]) / np.linalg.norm(clean[a] - clean[b])
        for a, b in pairs.items()
    ]
    assert found.gap == pytest.approx(np.median(gaps), rel=1e-4)
    drift = [np.linalg.norm(edited[n] - clean[n]) / np.linalg.norm(clean[n]) for n in kept]
    assert found.drift == pytest.approx(np.median(drift), rel=1e-4)


def test_kept_names_are_spread_over_the_list(pipeline: Pipeline) -> None:
    requests = [EditRequest("dog", "", ("{}",), task="erase")]
    reader = nearest_name.make_reader(pipeline.encoder, requests, KEEP, "a picture of {}", 3)
    assert [reader.names[i] for i in reader.kept] == ["cat", "beach", "goldfish"]
    assert reader.names[reader.destinations[0]] == ""
    assert (reader.ids[reader.destinations[0]][1:] == pipeline.encoder.tokenizer.eos_token_id).all()
