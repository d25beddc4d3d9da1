"""Stage II by brute force: the oracle of its tests, and what it is asked."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.stage_two.solve import WeightEdit, solve
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime.parallel import make_mesh

BLOCK = 3
# Relative error allowed. Below it only the attention's softmax is left, which is always float32.
BAR = 1e-6
ONE = make_mesh(jax.devices()[:1])
# Keys of different tokens overlap a lot here, so that neither term of the system is negligible.
CONFIG = StageTwoConfig(layers=(0, 1, 2, 3), preservation_weight=3.0, edit_weight=0.6)


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
    strength = config.preservation_weight * (1 - config.edit_weight) / config.edit_weight
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
