"""Which edits a prompt touches: the share of every edit's offset that is written at every token.

Concept units: how far the edit's gate is open there. Linear solvers: what a layer adds to a token
of key k is `dW k`, and `dW` is linear in what the edits ask for. So the solver is asked for the
identity in place of offsets, and tells each edit's part of what it writes. Keys are pristine, as in
`predicted_conflicts`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Float64, Int

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.diagnostics.predicted_conflicts import clean_run
from emcid_jax.editing.encoder.hidden_units import Units, openness
from emcid_jax.editing.moments.second_moment import SecondMoments, exact
from emcid_jax.editing.stage_two import preservation, solve
from emcid_jax.editing.stage_two.gate_report import GateReport
from emcid_jax.editing.units.states import fc1_inputs
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.encoder import TextEncoder

Writers = Mapping[int, Float64[np.ndarray, "request key"]]
"""Layer -> what a key is multiplied by for the share of each edit that the layer adds."""


def writers(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    moments: SecondMoments,
    config: StageTwoConfig,
) -> Writers:
    """How an edit of these requests by a linear solver writes; whatever their offsets are.

    Args:
        encoder: the base model's text encoder.
        requests: what is edited.
        moments: its second moments, with the layers of `config`.
        config: Stage II's settings for this encoder.

    Raises:
        UserError: what `preservation.protect` or the solver raise.
    """
    keys = clean_run(encoder, requests, config.layers).keys
    protection = preservation.protect(encoder, requests, config)
    weights = np.array([request.weight for request in requests])
    strength = solve.effective_strength(config)
    found, written = {}, np.zeros((len(requests), len(requests)))
    for index, layer in enumerate(config.layers):
        solver, moment = solve.layer_solver(config, layer, moments.moment(layer), protection)
        asked = (np.eye(len(requests)) - written) / (len(config.layers) - index)
        found[layer] = solver(keys[layer], asked, moment, weights, strength).delta
        written += keys[layer] @ found[layer].T
    return found


def written_shares(
    encoder: TextEncoder, found: Writers, ids: Int[np.ndarray, " token"]
) -> Float64[np.ndarray, "token request"]:
    """The share of each edit at every token of a prompt: 1 where it is written as a whole."""
    model = exact(encoder.model, encoder.params)
    keys = _keys(encoder.params, ids[None], model=model, layers=tuple(found))
    each = (np.asarray(keys[layer], np.float64) @ found[layer].T for layer in found)
    return sum(each, np.zeros((len(ids), 1)))


def gate_shares(
    encoder: TextEncoder,
    units: Units,
    gates: Sequence[GateReport],
    ids: Int[np.ndarray, " token"],
) -> Float[np.ndarray, "token request"]:
    """The same of concept units; a name without a unit of its own has the share of that it shares.

    Args:
        encoder: the base model's text encoder.
        units: the edit's.
        gates: what was reported of every request's gate, in the requests' order.
        ids: token ids of the prompt.
    """
    model = exact(encoder.model, encoder.params)
    inputs = _fc1_inputs(encoder.params, ids[None], model=model, block=units.block)
    found = openness(units, np.asarray(inputs), encoder.model.config.hidden_act)
    own = {gate.source: row for row, gate in enumerate(g for g in gates if not g.shares)}
    return found[:, [own[gate.shares or gate.source] for gate in gates]]


@functools.partial(jax.jit, static_argnames=("model", "layers"))
def _keys(
    params: Mapping[str, Any],
    ids: Int[Array, "prompt token"],
    *,
    model: ClipTextModel,
    layers: tuple[int, ...],
) -> dict[int, Float[Array, "token key"]]:
    with jax.default_matmul_precision("highest"):
        out: Any = model.apply({"params": params}, ids)
    return {layer: out.keys[layer][0] for layer in layers}


@functools.partial(jax.jit, static_argnames=("model", "block"))
def _fc1_inputs(
    params: Mapping[str, Any], ids: Int[Array, "prompt token"], *, model: ClipTextModel, block: int
) -> Float[Array, "token dim"]:
    with jax.default_matmul_precision("highest"):
        return fc1_inputs(model, params, ids, block)[0]
