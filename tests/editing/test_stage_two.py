from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.nullspace import nullspace
from emcid_jax.editing.preservation import Protection
from emcid_jax.editing.propagation import SourcePrompts
from emcid_jax.editing.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.solvers import Moment
from emcid_jax.editing.stage_two import WeightEdit, apply_edit, solve
from emcid_jax.errors import UserError
from emcid_jax.models.clip_text import ClipTextModel
from emcid_jax.models.weights import params_hash
from emcid_jax.parallel import make_mesh

BLOCK = 3
# DESIGN section 8. What is left below it is the attention's softmax, which is float32 in any case.
BAR = 1e-6
ONE = make_mesh(jax.devices()[:1])
# Keys of different tokens overlap a lot here, so that neither term of the system is negligible.
CONFIG = StageTwoConfig(layers=(0, 1, 2, 3), moment_weight=3.0, edit_weight=0.6)


def make_prompts(requests: int, seed: int = 0, per_request: int = 3) -> SourcePrompts:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 57, (requests, per_request, 16)).astype(np.int32)
    positions = rng.integers(1, 14, (requests, per_request))
    mask = rng.random((requests, per_request)) < 0.7
    mask[:, 0] = True
    return SourcePrompts(ids, positions, mask)


def at(states: np.ndarray, prompts: SourcePrompts) -> np.ndarray:
    """[request prompt dim] at each prompt's subject from flat [request * prompt, token, dim]."""
    requests, count, tokens = prompts.ids.shape
    states = states.reshape(requests, count, tokens, -1)
    return np.array(
        [[states[i, b, prompts.positions[i, b]] for b in range(count)] for i in range(requests)]
    )


def mean(states: np.ndarray, prompts: SourcePrompts) -> np.ndarray:
    picked = at(states, prompts)
    return np.array([picked[i][prompts.mask[i]].mean(axis=0) for i in range(len(picked))])


def plain(keys, residuals, moment, weights, strength, layer) -> np.ndarray:
    """The formula of the text, columns per request."""
    K, R = keys.T, residuals.T
    return np.linalg.solve(strength * moment + (K * weights) @ K.T, (K * weights) @ R.T).T


def brute_force(
    clip, memories, prompts, moments, config, weights=None, solver=plain
) -> dict[int, np.ndarray]:
    """Write into the weights, run the whole encoder for every layer, solve as the formula says."""
    params = copy.deepcopy(clip.params)
    weights = np.ones(len(memories)) if weights is None else weights
    ids = prompts.ids.reshape(-1, prompts.ids.shape[2])
    strength = config.moment_weight * (1 - config.edit_weight) / config.edit_weight
    deltas = {}
    for index, layer in enumerate(config.layers):
        trace = clip.forward(ids, params)
        keys = mean(trace.keys[layer], prompts)
        if config.residual == "memit":
            now = at(trace.hidden[config.layers[-1]], prompts)[:, 0]
        else:
            now = mean(trace.values[layer], prompts)
        residuals = (memories - now) / (len(config.layers) - index)
        moment = moments.moments[layer]
        deltas[layer] = solver(keys, residuals, moment, weights, strength, layer)
        fc2 = params["text_model"]["encoder"][f"layers.{layer}"]["mlp"]["fc2"]
        fc2["kernel"] = fc2["kernel"] + deltas[layer].T
    return deltas


def brute_moments(clip, captions, params) -> SecondMoments:
    keys = clip.forward(captions).keys
    valid = np.arange(16) <= np.argmax(captions == 58, axis=1)[:, None]
    moments = {layer: k[valid].T @ k[valid] / valid.sum() for layer, k in enumerate(keys)}
    about = MomentProvenance(params_hash(params), "", len(captions), (0, 1, 2, 3))
    return SecondMoments(moments, int(valid.sum()), about)


def make_memories(clip, prompts: SourcePrompts, scale: float = 1.0, seed: int = 5) -> np.ndarray:
    """z = h^L at prompt 0 + delta."""
    ids = prompts.ids.reshape(-1, 16)
    start = at(clip.forward(ids).hidden[BLOCK], prompts)[:, 0]
    return start + scale * np.random.default_rng(seed).standard_normal(start.shape)


def jax_params(clip, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), clip.params)


@dataclasses.dataclass(frozen=True)
class Solved:
    edit: WeightEdit
    expected: dict[int, np.ndarray]


def solved(
    clip,
    captions,
    config,
    *,
    requests=11,
    dtype=np.float64,
    weights=None,
    mesh=ONE,
    protection=None,
    solver=plain,
):
    prompts = make_prompts(requests)
    memories = make_memories(clip, prompts)
    with jax.enable_x64(dtype == np.float64):
        params = jax_params(clip, dtype)
        moments = brute_moments(clip, captions, params)
        model = ClipTextModel(clip.config)
        edit = solve(
            model,
            params,
            memories.astype(dtype),
            prompts,
            moments,
            config,
            block=config.layers[-1],
            weights=weights,
            mesh=mesh,
            protection=protection,
        )
    return Solved(edit, brute_force(clip, memories, prompts, moments, config, weights, solver))


def assert_same(result: dict[int, np.ndarray], expected: dict[int, np.ndarray], bar: float):
    assert list(result) == list(expected)
    for layer, delta in expected.items():
        error = np.linalg.norm(result[layer] - delta) / np.linalg.norm(delta)
        assert error < bar, (layer, error)


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
    config = dataclasses.replace(CONFIG, solve="device")
    both = solved(numpy_clip, captions, config)
    assert_same(both.edit.deltas, both.expected, BAR)
    errors = [layer.device_error for layer in both.edit.report.layers]
    assert all(error is not None and error <= 1e-6 for error in errors)
    host = solved(numpy_clip, captions, CONFIG).edit.report.layers
    assert [layer.device_error for layer in host] == [None] * 4


def make_protection(clip, captions) -> Protection:
    """Pristine keys of some captions are kept, those of another one are held."""
    keys = clip.forward(captions[:6]).keys
    flat = {layer: k.reshape(-1, k.shape[-1]) for layer, k in enumerate(keys)}
    held = {layer: k[0, :7] for layer, k in enumerate(clip.forward(captions[7:8]).keys)}
    return Protection({layer: 0.5 * k.T @ k for layer, k in flat.items()}, held)


@pytest.mark.parametrize("requests", [11, 90])
def test_kept_keys_are_requests_for_no_change(numpy_clip, captions, requests):
    """The oracle appends every kept key to the requests, with weight 0.5 and residual 0."""
    tokens = {
        layer: k.reshape(-1, 64) for layer, k in enumerate(numpy_clip.forward(captions[:6]).keys)
    }

    def solver(keys, residuals, moment, weights, strength, layer):
        kept = tokens[layer]
        return plain(
            np.concatenate([keys, kept]),
            np.concatenate([residuals, np.zeros((len(kept), 32))]),
            moment,
            np.concatenate([weights, np.full(len(kept), 0.5)]),
            strength,
            layer,
        )

    config = dataclasses.replace(CONFIG, solver="ridge+preserve")
    protection = make_protection(numpy_clip, captions)
    both = solved(
        numpy_clip, captions, config, requests=requests, protection=protection, solver=solver
    )
    assert_same(both.edit.deltas, both.expected, BAR)
    without = solved(numpy_clip, captions, CONFIG, requests=requests).edit.deltas
    for layer, delta in without.items():
        assert np.linalg.norm(both.edit.deltas[layer] @ tokens[layer].T) < 0.5 * np.linalg.norm(
            delta @ tokens[layer].T
        )


def test_null_space_holds_a_prompt_through_all_layers(numpy_clip, captions):
    """Layer by layer what `nullspace` gives on a full pass, and the held tokens do not move."""
    config = dataclasses.replace(CONFIG, solver="nullspace", nullspace_energy=0.5)
    protection = make_protection(numpy_clip, captions)

    def solver(keys, residuals, moment, weights, strength, layer):
        kept = Moment(moment + protection.kept[layer] / strength)
        held = protection.held[layer]
        return nullspace(keys, residuals, kept, weights, strength, held=held, energy=0.5).delta

    both = solved(numpy_clip, captions, config, protection=protection, solver=solver)
    assert_same(both.edit.deltas, both.expected, BAR)
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        edited = jax.tree.map(np.asarray, apply_edit(params, both.edit))
    one, other = captions[7:8], captions[8:9]
    before, after = (numpy_clip.forward(one, tree).hidden[3] for tree in (None, edited))
    np.testing.assert_allclose(after[0, :7], before[0, :7], atol=1e-10)
    moved = numpy_clip.forward(other, edited).hidden[3] - numpy_clip.forward(other).hidden[3]
    assert np.abs(moved[0, 1:7]).max() > 1e-3


def test_a_protecting_solver_wants_its_protection(numpy_clip, captions):
    with pytest.raises(UserError, match=r"solver is 'nullspace'; give the protection"):
        refused(numpy_clip, captions, config=dataclasses.replace(CONFIG, solver="nullspace"))


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
    """delta = 0 with `memit` asks for nothing; with `released` it does not (reference, 5.2)."""
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
    config = dataclasses.replace(CONFIG, moment_weight=1e-9)
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
    from emcid_jax.editing import propagation

    whole = solved(numpy_clip, captions, CONFIG, requests=20)
    monkeypatch.setattr(propagation, "CHUNK_TOKENS", 60)
    monkeypatch.setattr(propagation, "GROUP_TOKENS", 100)
    monkeypatch.setattr(propagation, "ROW_STEP", 3)
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
        ({"moment_weight": 0.0}, "moment_weight is 0.0"),
        ({"moment_weight": float("nan")}, "moment_weight is nan"),
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
