"""UCE: unified concept editing of the UNet's cross-attention (Gandikota et al., arXiv 2308.14761).

Every text key and value projection W of the UNet becomes the least-squares solution

    W' = (m W + e sum_i v_i k_i^T + p sum_j W k_j k_j^T)
         (m I + e sum_i k_i k_i^T + p sum_j k_j k_j^T)^-1

with k_i the text states of an edited name, k_j those of a protected name, and v_i what W makes of
the destination (`replace`), or that minus its part along what W makes of the source (`tensor`).
Names stand alone, without a template; their states run from the last token of the name to the last
padding that both source and destination have (docs/comparison.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import traverse_util
from jaxtyping import Float64

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import NotNegative, Positive
from emcid_jax.models.text.clip import end_positions
from emcid_jax.pipelines.generate import encode_prompts
from emcid_jax.pipelines.pipeline import Pipeline, tokenize

Path = tuple[str, ...]
Value = Literal["replace", "tensor"]


@dataclasses.dataclass(frozen=True)
class UceConfig:
    """Settings of UCE; the defaults are those of the reference's comparisons."""

    value: Value = "tensor"
    """What a source's states should be mapped to: `replace` takes the destination's values,
    `tensor` the part of them that does not look like the source's."""
    preservation_weight: Positive = 0.1
    """m: weight of the unedited matrix."""
    edit_weight: Positive = 0.1
    """e: weight of an edited token."""
    protected_weight: NotNegative = 0.1
    """p: weight of a token of a protected name."""
    preserve: tuple[str, ...] = ()
    """Names to protect."""
    preserve_path: str = ""
    """File of more such names, one a line; `sprites`: every object of the sprite world."""


class Pair(NamedTuple):
    """Text states of a name and of what its values come from, token by token."""

    key: Float64[np.ndarray, "token dim"]
    value: Float64[np.ndarray, "token dim"]
    weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class CrossAttentionEdit:
    """An edit of the UNet: projection -> change of its matrix. See `apply_edit`."""

    deltas: Mapping[Path, Float64[np.ndarray, "_ dim"]]
    """By path in the UNet's parameters, down to the module."""
    condition: float
    """Condition number of the system that all projections share."""


def solve(
    pipeline: Pipeline, requests: Sequence[EditRequest], keep: Sequence[str], config: UceConfig
) -> CrossAttentionEdit:
    """The edit of all `requests` at once; `keep` names what to protect.

    Protected names that are edited are left out. Float64 on the host.
    """
    sources = {normalised(request.source) for request in requests}
    keep = [name for name in keep if normalised(name) not in sources]
    both = [(request.source, request.dests[0]) for request in requests]
    states = token_states(pipeline, [*(name for pair in both for name in pair), *keep])
    pairs = [
        Pair(*_aligned(states[source], states[dest]), request.weight)
        for (source, dest), request in zip(both, requests, strict=True)
    ]
    kept = [states[name] for name in keep]
    weights = {
        path: np.asarray(kernel, np.float64).T
        for path, kernel in text_projections(pipeline.params["unet"]).items()
    }
    return closed_form(weights, pairs, kept, config)


def closed_form(
    weights: Mapping[Path, Float64[np.ndarray, "_ dim"]],
    pairs: Sequence[Pair],
    kept: Sequence[Float64[np.ndarray, "_ dim"]],
    config: UceConfig,
) -> CrossAttentionEdit:
    """The formula for every matrix. Its system is factorised once: all read the same states."""
    dim = next(iter(weights.values())).shape[1]
    same = config.preservation_weight * np.eye(dim)
    for key in kept:
        same += config.protected_weight * key.T @ key
    system = same.copy()
    for pair in pairs:
        system += config.edit_weight * pair.weight * pair.key.T @ pair.key
    factor = scipy.linalg.cho_factor(system)
    deltas = {}
    for path, matrix in weights.items():
        right = matrix @ same
        for pair in pairs:
            value = _value(matrix, pair, config.value)
            right += config.edit_weight * pair.weight * value.T @ pair.key
        deltas[path] = scipy.linalg.cho_solve(factor, right.T).T - matrix
    return CrossAttentionEdit(deltas, float(np.linalg.cond(system)))


def apply_edit(unet_params: Mapping[str, Any], edit: CrossAttentionEdit) -> dict[str, Any]:
    """The UNet's parameters with the edit in them; the given ones are not changed."""
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(dict(unet_params)))
    for path, delta in edit.deltas.items():
        kernel = np.asarray(flat[(*path, "kernel")])
        flat[(*path, "kernel")] = (kernel + delta.T).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def text_projections(unet_params: Mapping[str, Any]) -> dict[Path, Any]:
    """Kernels [dim, out] of `attn2.to_k` and `attn2.to_v` by path, without its `kernel`."""
    flat = traverse_util.flatten_dict(dict(unet_params))
    return {
        path[:-1]: kernel
        for path, kernel in flat.items()
        if path[-3:-1] in (("attn2", "to_k"), ("attn2", "to_v"))
    }


def token_states(
    pipeline: Pipeline, names: Sequence[str]
) -> dict[str, Float64[np.ndarray, "_ dim"]]:
    """Text states of every bare name, from its last token to the last padding.

    An empty name stands for the empty prompt, whose last token is the start token.
    """
    names = list(dict.fromkeys(names))
    prompts = [name or " " for name in names]
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    ends = end_positions(jnp.asarray(ids), pipeline.encoder.model.config.eos_token_id)
    states = np.asarray(encode_prompts(pipeline, prompts).tokens).astype(np.float64)
    return {
        name: row[end - 1 :]
        for name, row, end in zip(names, states, np.asarray(ends).tolist(), strict=True)
    }


def _aligned(
    source: Float64[np.ndarray, "_ dim"], dest: Float64[np.ndarray, "_ dim"]
) -> tuple[Float64[np.ndarray, "token dim"], Float64[np.ndarray, "token dim"]]:
    """Both from the name's last token on, as far as both go."""
    length = min(len(source), len(dest))
    return source[:length], dest[:length]


def _value(
    matrix: Float64[np.ndarray, "out dim"], pair: Pair, value: Value
) -> Float64[np.ndarray, "token out"]:
    """What the matrix should make of the pair's key."""
    wanted = pair.value @ matrix.T
    if value == "replace":
        return wanted
    source = pair.key @ matrix.T
    source = source / np.linalg.norm(source)
    return wanted - np.sum(wanted * source) * source
