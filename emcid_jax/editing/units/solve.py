"""Memories as concept units: hidden units of one block that each answer to one name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.concepts.conflicts import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.encoder.hidden_units import make_units
from emcid_jax.editing.stage_two.preservation import resolved
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.editing.units.fit import fit_gates
from emcid_jax.editing.units.room import make_room, require_room
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime.errors import UserError

SHOWN = 5
"""Pairs in a warning."""


def solve(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    offsets: Float[np.ndarray, "request dim"],
    statistics: UnitStatistics,
    config: StageTwoConfig,
    *,
    block: int,
) -> WeightEdit:
    """Two hidden units per request: its gate, and its offset as the answer.

    Args:
        encoder: the base model's text encoder.
        requests: what is edited.
        offsets: what Stage I found for each, times its strength.
        statistics: of this encoder and block.
        config: names to keep, contexts and the false firing allowed.
        block: Stage I's block.

    Raises:
        UserError: statistics, block or offsets that do not fit, or a name that does not.
    """
    _check(encoder, requests, offsets, statistics, config, block)
    config = resolved(config)
    edited = {normalised(request.source) for request in requests}
    keep = [name for name in config.preserve if normalised(name) not in edited]
    if len(keep) < len(config.preserve):
        logging.warning(
            "%d concepts to keep are edited and so not kept", len(config.preserve) - len(keep)
        )
    found = fit_gates(
        encoder,
        requests,
        keep,
        statistics,
        contexts=config.unit_contexts,
        false_firing=config.false_firing,
        floor=config.gate_threshold,
        all_strangers=config.all_strangers,
    )
    for gate, other in found.report.ambiguous:
        if not gate.shares:
            logging.warning(
                "the unit of %r answers to %r too, in %.0f %% of its contexts (%s)",
                gate.source,
                other.name,
                100 * other.fires,
                other.relation,
            )
    if longer := [(gate.source, name) for gate in found.report.gates for name in gate.inside]:
        logging.warning(
            "units answer inside %d longer names, too, for what comes behind a name cannot shut "
            "its unit: %s%s",
            len(longer),
            ", ".join(f"{name!r} in {other!r}" for name, other in longer[:SHOWN]),
            ", ..." if len(longer) > SHOWN else "",
        )
    own = np.array([not gate.shares for gate in found.report.gates])
    units = make_units(
        block,
        found.directions[own],
        statistics.mean,
        found.thresholds[own],
        offsets[own].astype(np.float64),
    )
    report = found.report
    if config.units_in_place:
        room, cost = make_room(encoder, block, units.width, statistics.reference)
        units = dataclasses.replace(units, room=room)
        report = dataclasses.replace(report, room=cost)
    left = (1.0 - found.reached)[:, None] * offsets
    return WeightEdit({}, StageTwoReport((), _rms(offsets), _rms(left), report), units)


def _rms(rows: Float[np.ndarray, "request dim"]) -> float:
    return float(np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1).mean()))


def _check(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    offsets: Float64[np.ndarray, "request dim"] | Float[np.ndarray, "request dim"],
    statistics: UnitStatistics,
    config: StageTwoConfig,
    block: int,
) -> None:
    """Everything that can be wrong is said before any work starts."""
    if config.layers != (block,):
        raise UserError(
            f"config.stage_two.layers is {config.layers}; units stand in one block, that of the "
            f"memories: give ({block},)"
        )
    if statistics.block != block or statistics.model_hash != params_hash(encoder.params):
        raise UserError("statistics of units are of another model or block; measure them again")
    size = encoder.model.config.hidden_size
    if offsets.shape != (len(requests), size):
        raise UserError(
            f"memories have offsets of shape {offsets.shape}; units take one token each: set "
            f"config.stage_one.edited_tokens to 1 (width {size})"
        )
    require_room(config, len(requests), encoder)
    bad = np.flatnonzero(~np.isfinite(offsets).all(axis=1))
    if bad.size:
        raise UserError(f"memory of request {bad[0]} is not finite; run Stage I for it again")
