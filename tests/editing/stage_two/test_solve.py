"""The algorithm against full forwards and plain solves, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.stage_two.solve import apply_edit, solve
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh
from stage_two_oracle import (
    BAR,
    BLOCK,
    CONFIG,
    ONE,
    assert_same,
    at,
    brute_moments,
    jax_params,
    make_memories,
    make_prompts,
    mean,
    solved,
)


@pytest.mark.parametrize("residual", ["memit", "released"])
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 3), (3,), (0, 2)])
def test_equals_brute_force(numpy_clip, captions, residual, layers):
    """The whole algorithm in float64 against full forwards and plain solves."""
    config = dataclasses.replace(CONFIG, residual=residual, layers=layers)
    both = solved(numpy_clip, captions, config)
    assert_same(both.edit.deltas, both.expected, BAR)


@pytest.mark.parametrize("residual", ["memit", "released"])
def test_more_requests_than_key_dimensions(numpy_clip, captions, residual):
    config = dataclasses.replace(CONFIG, residual=residual)
    both = solved(numpy_clip, captions, config, requests=90)
    assert {layer.form for layer in both.edit.report.layers} == {"primal"}
    assert_same(both.edit.deltas, both.expected, BAR)


def test_solving_on_the_device(numpy_clip, captions):
    config = dataclasses.replace(CONFIG, solve_on="device")
    both = solved(numpy_clip, captions, config)
    assert_same(both.edit.deltas, both.expected, BAR)
    errors = [layer.device_error for layer in both.edit.report.layers]
    assert all(error is not None and error <= 1e-6 for error in errors)
    host = solved(numpy_clip, captions, CONFIG).edit.report.layers
    assert [layer.device_error for layer in host] == [None] * 4


def test_weights(numpy_clip, captions):
    weights = np.random.default_rng(2).uniform(0.2, 4, 11)
    both = solved(numpy_clip, captions, CONFIG, weights=weights)
    assert_same(both.edit.deltas, both.expected, BAR)


@pytest.mark.parametrize("residual", ["memit", "released"])
def test_float32_forward(numpy_clip, captions, residual):
    """What runs in production: forward in float32, solve in float64."""
    config = dataclasses.replace(CONFIG, residual=residual)
    both = solved(numpy_clip, captions, config, dtype=np.float32)
    assert_same(both.edit.deltas, both.expected, 2e-5)


def test_memories_of_zero_offset_change_nothing(numpy_clip, captions):
    """delta = 0 with `memit` asks for nothing; with `released` it does not (docs/method.md)."""
    prompts = make_prompts(9)
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        moments = brute_moments(numpy_clip, captions, params)
        model, memories = ClipTextModel(numpy_clip.config), make_memories(numpy_clip, prompts, 0.0)
        for residual, empty in (("memit", True), ("released", False)):
            config = dataclasses.replace(CONFIG, residual=residual)
            edit = solve(model, params, memories, prompts, moments, config, block=BLOCK, mesh=ONE)
            size = max(np.abs(delta).max() for delta in edit.deltas.values())
            assert (size < 1e-5) == empty, (residual, size)


def test_small_lambda_reaches_the_memories(numpy_clip, captions):
    """One prompt per request, lambda -> 0: h^L of the edited model is z; the report says so."""
    prompts = make_prompts(8, per_request=1)
    memories = make_memories(numpy_clip, prompts)
    config = dataclasses.replace(CONFIG, preservation_weight=1e-9)
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        moments = brute_moments(numpy_clip, captions, params)
        model = ClipTextModel(numpy_clip.config)
        edit = solve(model, params, memories, prompts, moments, config, block=BLOCK, mesh=ONE)
        edited = jax.tree.map(np.asarray, apply_edit(params, edit))
    trace = numpy_clip.forward(prompts.ids[:, 0], edited)
    reached = at(trace.hidden[BLOCK], prompts)[:, 0]
    np.testing.assert_allclose(reached, memories, atol=1e-5)
    assert edit.report.distance_after < 1e-5 < edit.report.distance_before


def test_report_figures(numpy_clip, captions):
    """Distances and norms against the edited model run in full by the oracle."""
    prompts = make_prompts(11)
    memories = make_memories(numpy_clip, prompts)
    config = dataclasses.replace(CONFIG, layers=(1, 3))
    seen = []
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        moments = brute_moments(numpy_clip, captions, params)
        edit = solve(
            ClipTextModel(numpy_clip.config),
            params,
            memories,
            prompts,
            moments,
            config,
            block=BLOCK,
            mesh=ONE,
            progress=seen.append,
        )
        edited = jax.tree.map(np.asarray, apply_edit(params, edit))
    ids = prompts.ids.reshape(-1, 16)

    def rms(rows):
        return np.sqrt((rows**2).sum(axis=1).mean())

    def first(trace):
        return at(trace.hidden[BLOCK], prompts)[:, 0]

    clean, after = numpy_clip.forward(ids), numpy_clip.forward(ids, edited)
    report = edit.report
    assert tuple(seen) == report.layers
    np.testing.assert_allclose(report.distance_before, rms(memories - first(clean)), 1e-6)
    np.testing.assert_allclose(report.distance_after, rms(memories - first(after)), 1e-6)
    layer = report.layers[0]
    asked = (memories - first(clean)) / 2
    written = mean(clean.keys[1], prompts) @ edit.deltas[1].T
    np.testing.assert_allclose(layer.asked, rms(asked), 1e-6)
    np.testing.assert_allclose(layer.left, rms(asked - written), 1e-6)
    kernel = numpy_clip.params["text_model"]["encoder"]["layers.1"]["mlp"]["fc2"]["kernel"]
    change = np.linalg.norm(edit.deltas[1]) / np.linalg.norm(kernel)
    np.testing.assert_allclose(layer.change, change, 1e-6)
    assert 1 <= layer.condition < 1e12


def test_chunking_and_padding_change_nothing(numpy_clip, captions, monkeypatch):
    from emcid_jax.editing.encoder import blockwise

    whole = solved(numpy_clip, captions, CONFIG, requests=20)
    monkeypatch.setattr(blockwise, "CHUNK_TOKENS", 60)
    monkeypatch.setattr(blockwise, "GROUP_TOKENS", 100)
    monkeypatch.setattr(blockwise, "ROW_STEP", 3)
    cut = solved(numpy_clip, captions, CONFIG, requests=20)
    assert_same(cut.edit.deltas, whole.edit.deltas, BAR)


def test_eight_devices_give_the_same(numpy_clip, captions):
    one = solved(numpy_clip, captions, CONFIG)
    mesh = make_mesh()
    assert mesh.size == 8
    eight = solved(numpy_clip, captions, CONFIG, mesh=mesh)
    assert_same(eight.edit.deltas, one.edit.deltas, BAR)


def test_order_of_requests_does_not_matter(numpy_clip, captions):
    prompts = make_prompts(12)
    memories = make_memories(numpy_clip, prompts)
    order = np.random.default_rng(0).permutation(12)
    moved = SourcePrompts(prompts.ids[order], prompts.positions[order], prompts.mask[order])
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        moments = brute_moments(numpy_clip, captions, params)
        model = ClipTextModel(numpy_clip.config)
        one = solve(model, params, memories, prompts, moments, CONFIG, block=BLOCK, mesh=ONE)
        two = solve(model, params, memories[order], moved, moments, CONFIG, block=BLOCK, mesh=ONE)
    assert_same(two.deltas, one.deltas, BAR)


def test_apply_leaves_the_base_alone(numpy_clip, captions):
    both = solved(numpy_clip, captions, dataclasses.replace(CONFIG, layers=(1, 3)))
    params = jax_params(numpy_clip, np.float32)
    before = jax.tree.map(np.array, params)
    edited = apply_edit(params, both.edit)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for layer in range(4):
        old = params["text_model"]["encoder"][f"layers.{layer}"]
        new = edited["text_model"]["encoder"][f"layers.{layer}"]
        kernel, after = old["mlp"]["fc2"]["kernel"], new["mlp"]["fc2"]["kernel"]
        assert after.dtype == kernel.dtype
        if layer in (1, 3):
            expected = (np.asarray(kernel, np.float64) + both.edit.deltas[layer].T).astype("f4")
            np.testing.assert_array_equal(after, expected)
            assert new["mlp"]["fc2"]["bias"] is old["mlp"]["fc2"]["bias"]
        else:
            assert new is old
    with pytest.raises(UserError, match=r"layers\.7"):
        apply_edit(params, dataclasses.replace(both.edit, deltas={7: both.edit.deltas[1]}))


def test_a_protecting_solver_wants_its_protection(numpy_clip, captions):
    with pytest.raises(UserError, match=r"solver is 'nullspace'; give the protection"):
        refused(numpy_clip, captions, config=dataclasses.replace(CONFIG, solver="nullspace"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 0, 3)}, "ascending"),
        ({"layers": ()}, "ascending"),
        ({"layers": (1, 1, 3)}, "ascending"),
        ({"layers": (0, 4)}, "blocks 0 to 3"),
        ({"layers": (0, 2)}, r"stage_one\.layer is 3"),
        ({"edit_weight": 1.0}, "edit_weight is 1.0"),
        ({"edit_weight": 0.0}, "edit_weight is 0.0"),
        ({"preservation_weight": 0.0}, "preservation_weight is 0.0"),
        ({"preservation_weight": float("nan")}, "preservation_weight is nan"),
    ],
)
def test_bad_settings(numpy_clip, captions, changes, message):
    with pytest.raises(UserError, match=message):
        refused(numpy_clip, captions, config=dataclasses.replace(CONFIG, **changes))


def test_bad_inputs(numpy_clip, captions):
    prompts = make_prompts(4)
    memories = make_memories(numpy_clip, prompts).astype(np.float32)
    nan = memories.copy()
    nan[2, 1] = np.nan
    with pytest.raises(UserError, match="request 2 is not finite"):
        refused(numpy_clip, captions, memories=nan)
    with pytest.raises(UserError, match="memories have shape"):
        refused(numpy_clip, captions, memories=memories[:3])
    with pytest.raises(UserError, match="request 1 has -1"):
        refused(numpy_clip, captions, weights=np.array([1.0, -1, 1, 1]))
    late = dataclasses.replace(prompts, positions=prompts.positions + 16 * (prompts.positions > 9))
    with pytest.raises(UserError, match="within 16 tokens"):
        refused(numpy_clip, captions, prompts=late)
    with pytest.raises(UserError, match="another model"):
        refused(numpy_clip, captions, model_hash="other")
    with pytest.raises(UserError, match=r"lack layers \[2\]"):
        refused(numpy_clip, captions, without=2)
    with pytest.raises(UserError, match=r"layer 0: .*not positive definite"):
        refused(numpy_clip, captions[:2])


def refused(
    clip,
    captions,
    *,
    config=CONFIG,
    memories=None,
    prompts=None,
    model_hash=None,
    without=None,
    weights=None,
):
    base = make_prompts(4)
    params = jax_params(clip, np.float32)
    moments = brute_moments(clip, captions, params)
    if model_hash is not None:
        about = dataclasses.replace(moments.provenance, model_hash=model_hash)
        moments = dataclasses.replace(moments, provenance=about)
    moments.moments.pop(without, None)
    if memories is None:
        memories = make_memories(clip, base).astype(np.float32)
    model, prompts = ClipTextModel(clip.config), base if prompts is None else prompts
    solve(model, params, memories, prompts, moments, config, block=BLOCK, weights=weights)
