"""UCE against its formula written out token by token, and what it does to a UNet."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emcid_jax.baselines import uce
from emcid_jax.baselines.uce import Pair, UceConfig
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.pipelines.generate import encode_prompts
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

DIM, OUT = 6, 4


@pytest.fixture(scope="module", params=["tiny_pipeline_folder", "tiny_xl_folder"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load_pipeline(request.getfixturevalue(request.param))


def written_out(matrix, pairs, kept, config) -> np.ndarray:
    """The formula as sums of outer products of single tokens, and an explicit inverse."""
    left = config.preservation_weight * matrix
    right = config.preservation_weight * np.eye(matrix.shape[1])
    for pair in pairs:
        old = np.stack([matrix @ k for k in pair.key])
        new = np.stack([matrix @ u for u in pair.value])
        if config.value == "tensor":
            unit = old / np.sqrt((old**2).sum())
            new = new - (new * unit).sum() * unit
        for k, v in zip(pair.key, new, strict=True):
            left = left + config.edit_weight * pair.weight * np.outer(v, k)
            right = right + config.edit_weight * pair.weight * np.outer(k, k)
    for states in kept:
        for k in states:
            left = left + config.protected_weight * np.outer(matrix @ k, k)
            right = right + config.protected_weight * np.outer(k, k)
    return left @ np.linalg.inv(right)


@pytest.mark.parametrize("value", ["replace", "tensor"])
@pytest.mark.parametrize("kept_count", [0, 2])
def test_closed_form_is_the_formula(value: str, kept_count: int) -> None:
    rng = np.random.default_rng(0)
    pairs = [
        Pair(rng.standard_normal((3, DIM)), rng.standard_normal((3, DIM)), 1.0),
        Pair(rng.standard_normal((5, DIM)), rng.standard_normal((5, DIM)), 2.5),
    ]
    kept = [rng.standard_normal((4, DIM)) for _ in range(kept_count)]
    weights = {(name,): rng.standard_normal((OUT, DIM)) for name in ("a", "b")}
    config = UceConfig(value, preservation_weight=0.3, edit_weight=0.2, protected_weight=0.7)
    found = uce.closed_form(weights, pairs, kept, config)
    for path, matrix in weights.items():
        expected = written_out(matrix, pairs, kept, config)
        np.testing.assert_allclose(matrix + found.deltas[path], expected, rtol=1e-10, atol=1e-12)


def test_enough_weight_maps_sources_to_destinations_and_leaves_kept_ones() -> None:
    rng = np.random.default_rng(1)
    pair = Pair(rng.standard_normal((2, DIM)), rng.standard_normal((2, DIM)), 1.0)
    kept = rng.standard_normal((2, DIM))
    matrix = rng.standard_normal((OUT, DIM))
    config = UceConfig("replace", preservation_weight=1e-9, edit_weight=1.0, protected_weight=1.0)
    after = matrix + uce.closed_form({("w",): matrix}, [pair], [kept], config).deltas["w",]
    np.testing.assert_allclose(pair.key @ after.T, pair.value @ matrix.T, atol=1e-6)
    np.testing.assert_allclose(kept @ after.T, kept @ matrix.T, atol=1e-6)


def test_states_run_from_the_last_token_of_the_bare_name(pipeline: Pipeline) -> None:
    names = ["dog", "great white shark", ""]
    found = uce.token_states(pipeline, names)
    for name in names:
        prompt = name or " "
        tokens = pipeline.encoder.tokenizer([prompt])["input_ids"][0]  # start, name, end
        whole = encode_prompts(pipeline, [prompt]).tokens[0]
        np.testing.assert_allclose(found[name], whole[len(tokens) - 2 :], atol=1e-5)
    assert len(found[""]) == 32


def test_edit_changes_the_text_projections_and_nothing_else(pipeline: Pipeline) -> None:
    requests = [EditRequest("dog", "great white shark", ("{}",), weight=20.0)]
    config = UceConfig("replace", preservation_weight=1e-3)
    edit = uce.solve(pipeline, requests, ["cat", "Dog"], config)
    unet = pipeline.params["unet"]
    edited = uce.apply_edit(unet, edit)
    assert jax.tree.structure(edited) == jax.tree.structure(dict(unet))
    changed = {
        jax.tree_util.keystr(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(dict(unet)), jax.tree.leaves(edited), strict=True
        )
        if not np.array_equal(old, new)
    }
    # One attention in the down block, two in the up block, one in the middle: keys and values.
    # SDXL's there have two transformer blocks each.
    assert len(changed) == 2 * (8 if len(pipeline.texts) > 1 else 4)
    assert all("attn2" in name and ("to_k" in name or "to_v" in name) for name in changed)
    # The source is read as the destination was, and "cat", which is kept, as before; "Dog" is
    # edited, whatever its letters' case, and so not kept.
    states = uce.token_states(pipeline, ["dog", "great white shark", "cat"])
    path = next(iter(edit.deltas))
    old = np.asarray(uce.text_projections(unet)[path], np.float64)
    new = np.asarray(uce.text_projections(edited)[path], np.float64)
    length = len(states["great white shark"])
    wanted = states["great white shark"] @ old
    before = states["dog"][:length] @ old
    far, near = (np.linalg.norm(x - wanted) for x in (before, states["dog"][:length] @ new))
    assert near < 0.2 * far
    free = uce.apply_edit(unet, uce.solve(pipeline, requests, [], config))
    unkept = np.asarray(uce.text_projections(free)[path], np.float64)
    drift = [np.linalg.norm(states["cat"] @ (matrix - old)) for matrix in (new, unkept)]
    assert drift[0] < 0.5 * drift[1]
