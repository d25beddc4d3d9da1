"""Stage II: one closed-form solve per edited layer writes all memories into `mlp.fc2`.

The text encoder's weights are never changed on the way. Block outputs are linear in `fc2`, so what
a written layer does to a prompt is `keys @ dW^T` added to its output; prompts then go on, through
pristine blocks, to the next edited layer only.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Float64

from emcid_jax.config import SolveOn, StageTwoConfig
from emcid_jax.editing.encoder.blockwise import (
    Blocks,
    SourcePrompts,
    last_states,
    prompt_means,
    split_prompts,
    write,
    written_states,
)
from emcid_jax.editing.encoder.hidden_units import Units, with_changes, with_units
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.moments.second_moment import SecondMoments, exact
from emcid_jax.editing.stage_two.gate_report import UnitsReport
from emcid_jax.editing.stage_two.nullspace import nullspace
from emcid_jax.editing.stage_two.preservation import Protection
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.ridge_on_device import device_ridge
from emcid_jax.editing.stage_two.solver import Form, Solver
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, with_text_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.runtime.typed_values import ANY_NUMBER

_SOLVERS: Mapping[SolveOn, Solver] = {"host": ridge, "device": device_ridge}


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What one layer's solve should do and did; norms are root mean squares over requests."""

    layer: int
    form: Form
    """Form of the system that was solved, see `ridge.ridge`."""
    condition: Annotated[float, ANY_NUMBER]
    """Estimated condition number of that system."""
    asked: float
    """|R_l|: the requested residual."""
    left: float
    """|R_l - dW_l K_l|: what regularisation left unwritten of it."""
    change: float
    """|dW_l| / |W_l| (Frobenius)."""
    device_error: Annotated[float, ANY_NUMBER] | None = None
    """Relative error that the device reached; too large a one means that the host solved."""


@dataclasses.dataclass(frozen=True)
class StageTwoReport:
    """The whole edit; distances are root mean squares over requests of |z - h^L| at prompt 0."""

    layers: tuple[LayerReport, ...]
    distance_before: float
    """Before any layer was written: the length of Stage I's offsets."""
    distance_after: float
    """After all were."""
    units: UnitsReport | None = None
    """Concept units, where the solver is `units`; then no layer was solved."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightEdit:
    """Layer -> dW of `mlp.fc2` in (out, in) layout, to be added to pristine weights."""

    deltas: dict[int, Float64[np.ndarray, "out inner"]]
    report: StageTwoReport
    units: Units | None = None
    """Hidden units to be added beside."""


ModelEdit = Mapping[str, WeightEdit]
"""The edit of a model: by text encoder."""


def solve(
    model: ClipTextModel,
    params: Mapping[str, Any],
    memories: Float[np.ndarray, "request dim"],
    prompts: SourcePrompts,
    moments: SecondMoments,
    config: StageTwoConfig,
    *,
    block: int,
    weights: Float[np.ndarray, " request"] | None = None,
    mesh: Mesh | None = None,
    protection: Protection | None = None,
    progress: Callable[[LayerReport], None] | None = None,
) -> WeightEdit:
    """Solve for the weight change of every layer in `config.layers`, ascending.

    With n layers, at the i-th (counted from 0), layer l:

    * key `k`: input of fc2 at the last subject token, mean over the request's prompts;
    * residual, `memit`: `(z - h^L) / (n - i)`, `h^L` the output of block L at the subject token of
      *prompt 0* with the layers below l already written. Prompt 0 because `z = h^L_0 + delta`
      was recorded there, so a memory with delta = 0 asks for nothing;
    * residual, `released`: `(z - m) / (n - i)`, `m` the output of fc2 of layer l itself (bias
      included), mean over the prompts: the published code's mixture (docs/method.md);
    * `dW` by the solver with strength `lambda (1 - alpha) / alpha`.

    Args:
        model: the text encoder; runs in float32 (float64 where its parameters are).
        params: its pristine parameters, not changed.
        memories: Stage I's `z`, one row per request.
        prompts: the requests' source prompts.
        moments: second moments of this very model, with every edited layer.
        config: layers, residual convention, lambda and alpha, which solver and where.
        block: Stage I's block L.
        weights: how much each request counts (default 1): request i's squared error is
            multiplied by it, so weight 2 is the same as giving the request twice.
        mesh: devices that prompts are split over (default: all).
        protection: what `preservation.protect` gave for `config`; `ridge` needs none.
        progress: called after every layer.

    Raises:
        UserError: settings, memories or moments that do not fit; a singular system.
    """
    _check(model, params, memories, prompts, moments, config, block)
    if config.solver != "ridge" and protection is None:
        raise UserError(
            f"stage_two.solver is {config.solver!r}; give the protection that "
            "preservation.protect makes of it"
        )
    targets = np.asarray(memories, np.float64)
    weights = _checked_weights(weights, len(targets))
    mesh = make_mesh() if mesh is None else mesh
    model = exact(model, dict(params))
    blocks = Blocks(model, params, mesh)
    strength = effective_strength(config)

    chunks = split_prompts(prompts, mesh)
    deltas: dict[int, np.ndarray] = {}
    reports: list[LayerReport] = []
    states = before = after = np.zeros_like(targets)
    reached = 0  # `hidden` of every chunk is the input of this block
    for index, layer in enumerate(config.layers):
        chunks = [blocks.forward(chunk, reached, layer) for chunk in chunks]
        runs = [blocks.run(chunk, layer) for chunk in chunks]
        keys = prompt_means(chunks, [run.key for run in runs], prompts.mask)
        if index == 0 or config.residual == "memit":
            states = last_states(blocks, chunks, runs, layer, block, targets.shape)
        if index == 0:
            before = states
        if config.residual == "memit":
            residuals = targets - states
        else:
            residuals = targets - prompt_means(chunks, [run.value for run in runs], prompts.mask)
        residuals /= len(config.layers) - index
        solver, moment = layer_solver(config, layer, moments.moment(layer), protection)
        try:
            solution = solver(keys, residuals, moment, weights, strength)
        except UserError as error:
            raise UserError(f"layer {layer}: {error}") from error
        delta = solution.delta
        deltas[layer] = delta
        reports.append(
            LayerReport(
                layer,
                solution.form,
                solution.condition,
                asked=_rms(residuals),
                left=_rms(residuals - keys @ delta.T),
                change=float(np.linalg.norm(delta) / np.linalg.norm(_kernel(params, layer))),
                device_error=solution.device_error,
            )
        )
        if progress is not None:
            progress(reports[-1])
        if layer == block:
            after = written_states(chunks, runs, delta, targets.shape)
        else:
            chunks = [
                dataclasses.replace(chunk, hidden=write(run.hidden, run.keys, delta))
                for chunk, run in zip(chunks, runs, strict=True)
            ]
            reached = layer + 1
    report = StageTwoReport(tuple(reports), _rms(targets - before), _rms(targets - after))
    return WeightEdit(deltas, report)


def apply_edit(text_params: Mapping[str, Any], edit: WeightEdit) -> dict[str, Any]:
    """New parameters with the edit added; `text_params` and what is not edited stay shared.

    Raises `UserError` if a layer is missing or has another shape.
    """
    encoder = dict(text_params["text_model"]["encoder"])
    for layer, delta in edit.deltas.items():
        name = f"layers.{layer}"
        if name not in encoder or encoder[name]["mlp"]["fc2"]["kernel"].shape != delta.T.shape:
            raise UserError(
                f"weight edit: {name}.mlp.fc2 of shape {delta.shape} is not in this text encoder; "
                "apply the edit to the model it was made for"
            )
        mlp = with_changes(encoder[name]["mlp"], {"fc2.weight": delta})
        encoder[name] = encoder[name] | {"mlp": mlp}
    text_model = dict(text_params["text_model"]) | {"encoder": encoder}
    edited_params = dict(text_params) | {"text_model": text_model}
    return edited_params if edit.units is None else with_units(edited_params, edit.units)


def with_edit(pipeline: Pipeline, edit: ModelEdit) -> Pipeline:
    """The pipeline with the edit in its text encoders; `pipeline` stays as it is."""
    edited = {name: apply_edit(pipeline.params[name], own) for name, own in edit.items()}
    return with_text_params(pipeline, edited)


def layer_solver(
    config: StageTwoConfig, layer: int, moment: Moment, protection: Protection | None
) -> tuple[Solver, Moment]:
    """The solver of a layer, and the second moment for it, with the protected concepts in it."""
    solver = _SOLVERS[config.solve_on]
    if protection is None:
        return solver, moment
    if config.solver == "nullspace":
        held, energy = protection.held[layer], config.nullspace_energy
        solver = functools.partial(nullspace, held=held, energy=energy, within=solver)
    return solver, protection.moment(layer, moment, effective_strength(config))


def effective_strength(config: StageTwoConfig) -> float:
    """lambda_eff, how much preservation counts: `lambda (1 - alpha) / alpha`."""
    return config.preservation_weight * (1 - config.edit_weight) / config.edit_weight


def _kernel(params: Mapping[str, Any], layer: int) -> Array:
    return params["text_model"]["encoder"][f"layers.{layer}"]["mlp"]["fc2"]["kernel"]


def _rms(rows: np.ndarray) -> float:
    return float(np.sqrt(np.square(rows).sum(axis=1).mean()))


def _checked_weights(weights: np.ndarray | None, count: int) -> np.ndarray:
    if weights is None:
        return np.ones(count)
    weights = np.asarray(weights, np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if weights.shape != (count,) or bad.size:
        where = f"request {bad[0]} has {weights[bad[0]]}" if bad.size else f"shape {weights.shape}"
        raise UserError(f"weight: {where}; give every request one positive number")
    return weights


def _check(
    model: ClipTextModel,
    params: Mapping[str, Any],
    memories: np.ndarray,
    prompts: SourcePrompts,
    moments: SecondMoments,
    config: StageTwoConfig,
    block: int,
) -> None:
    """Everything that can be wrong is said before any work starts."""
    layers, depth = config.layers, model.config.num_hidden_layers
    if not layers or any(a >= b for a, b in itertools.pairwise(layers)):
        raise UserError(f"stage_two.layers is {layers}; give ascending blocks, each once")
    if layers[0] < 0 or layers[-1] >= depth:
        raise UserError(f"stage_two.layers is {layers}; the model has blocks 0 to {depth - 1}")
    if layers[-1] != block:
        raise UserError(
            f"stage_two.layers ends with {layers[-1]}, stage_one.layer is {block}; make them equal"
        )
    if not 0 < config.edit_weight < 1:
        raise UserError(
            f"stage_two.edit_weight is {config.edit_weight}; give a number between 0 and 1, both "
            "excluded (at 1 nothing is preserved and the system is singular)"
        )
    if not (config.preservation_weight > 0 and np.isfinite(config.preservation_weight)):
        raise UserError(
            f"stage_two.preservation_weight is {config.preservation_weight}; give a positive number"
        )
    missing = [layer for layer in layers if layer not in moments.moments]
    if missing:
        raise UserError(f"second moments lack layers {missing}; compute them for {layers}")
    if moments.provenance.model_hash != params_hash(params):
        raise UserError("second moments are of another model; compute them for this one")
    requests = prompts.ids.shape[0]
    if not requests or memories.shape != (requests, model.config.hidden_size):
        raise UserError(
            f"memories have shape {memories.shape}; give one row of {model.config.hidden_size} "
            f"for each of the {requests} requests"
        )
    bad = np.flatnonzero(~np.isfinite(memories).all(axis=1))
    if bad.size:
        raise UserError(f"memory of request {bad[0]} is not finite; run Stage I for it again")
    tokens = prompts.ids.shape[2]
    inside = (prompts.positions >= 0) & (prompts.positions < tokens)
    bad = np.flatnonzero(~prompts.mask[:, 0] | (prompts.mask & ~inside).any(axis=1))
    if bad.size:
        raise UserError(
            f"request {bad[0]}: needs a prompt 0 and subjects within {tokens} tokens; "
            "shorten its prompts"
        )
