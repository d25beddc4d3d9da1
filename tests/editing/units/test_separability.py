"""Separability against transformers' states, and its shares against loops over pairs in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.editing.units import contexts, gates, separability, statistics
from emcid_jax.pipelines.pipeline import load_pipeline

CAPTIONS = [
    "a photo of a red fox in the snow",
    "a photo of a small owl in the water",
    "an image of a blue whale",
    "the drawing of a cat on the beach",
    "a picture of the whale and the owl",
]
FIRST, LAST = ("red", "old", "shark"), ("fox", "owl", "whale", "cat", "nurse")
NAMES = [f"{one} {other}" for one in FIRST for other in LAST]
CONTEXTS = 6


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def pool():
    return contexts.beginnings(CAPTIONS, 40, 0)


def oracle(pipeline, ids) -> np.ndarray:
    """The input of every block's `fc1` at every token, by transformers in float64."""
    import torch
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder").double().eval()
    seen: list[np.ndarray] = []
    for layer in getattr(text, "text_model", text).encoder.layers:
        layer.mlp.fc1.register_forward_hook(
            lambda module, inputs, output: seen.append(inputs[0].detach().numpy())
        )
    with torch.no_grad():
        text(torch.as_tensor(ids))
    return np.stack(seen, axis=2)


def brute_force(states: np.ndarray, keys: list[str], count: int) -> list[bool]:
    """Name by name and pair by pair, with NumPy's own solve."""
    rows = states.reshape(-1, states.shape[-1])
    mean, total = rows.mean(axis=0), np.cov(rows.T, bias=True)
    within = np.mean([np.cov(one.T) for one in states], axis=0)
    metric = within + gates.SHRINKAGE * total
    metric += gates.RIDGE * np.trace(metric) / len(metric) * np.eye(len(metric))
    found = []
    for gate in range(count):
        direction = np.linalg.solve(metric, states[gate].mean(axis=0) - mean)
        direction /= direction @ (states[gate].mean(axis=0) - mean)
        lowest = min(direction @ (state - mean) for state in states[gate])
        others = [
            direction @ (state - mean)
            for name, key in enumerate(keys)
            if key.split()[-len(keys[gate].split()) :] != keys[gate].split()
            for state in states[name]
        ]
        found.append(lowest > max(others))
    return found


def test_shares_are_those_of_brute_force_in_every_block(pipeline, pool, monkeypatch):
    monkeypatch.setattr(separability, "PHRASE_CONTEXTS", CONTEXTS)
    monkeypatch.setattr(separability, "NAMES", len(NAMES))
    monkeypatch.setattr(separability, "BATCH", 7)  # The last batch is not full.
    found = separability.by_block(pipeline.encoder, NAMES, pool)
    said = [one.removesuffix(" {}") for one in pool if one != "{}"]
    texts = NAMES + statistics.phrases(said, len(NAMES), seed=0)
    prompts = contexts.name_prompts(
        pipeline.encoder.tokenizer, texts, [()] * len(texts), pool, CONTEXTS, texts
    )
    ids, last = prompts.ids.reshape(-1, prompts.ids.shape[2]), prompts.positions.reshape(-1)
    states = oracle(pipeline, ids)[np.arange(len(ids)), last]
    states = states.reshape(len(texts), CONTEXTS, *states.shape[1:])
    wanted = [
        np.mean(brute_force(states[:, :, block], texts, len(NAMES)))
        for block in range(states.shape[2])
    ]
    assert len(wanted) == 4
    assert any(0 < share < 1 for share in wanted), "nothing is told by this case"
    assert found == pytest.approx(wanted)


def test_a_name_inside_another_is_not_told_from_where_it_ends_too():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(4, 1, 8))
    centres[3] = centres[2]  # Nobody could tell the last two apart.
    states = (centres + rng.normal(size=(4, 40, 8)) / 3).astype(np.float32)
    apart = np.eye(4, dtype=bool)
    assert separability.separable(states, apart).tolist() == [True, True, False, False]
    apart[3, 2] = True  # The fourth name ends with the third.
    assert separability.separable(states, apart).tolist() == [True, True, True, False]


def test_a_long_list_is_thinned_evenly(pipeline, pool, monkeypatch):
    asked = []
    monkeypatch.setattr(separability, "NAMES", 3)
    monkeypatch.setattr(
        separability, "name_prompts", lambda *given: asked.append(given) or name_prompts(*given)
    )
    name_prompts = contexts.name_prompts
    separability.by_block(pipeline.encoder, [f"name {i}" for i in range(9)], pool)
    assert asked[0][1][:3] == ["name 0", "name 4", "name 8"]


def test_without_another_name_that_fits_there_is_no_curve(pipeline):
    assert separability.by_block(pipeline.encoder, ["tench"], ("{}",)) == ()
    assert separability.by_block(pipeline.encoder, ["tench " * 40], ("a fox {}",)) == ()
