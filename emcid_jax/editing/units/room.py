"""Room for an edit's units in an MLP that keeps its width: hidden units that are least missed go.

`fc2` is linear in what the hidden units answer. With `C` their covariance over captions and `w_j`
the columns of `fc2`, leaving out unit j and refitting the other columns changes what the MLP adds
by a mean square of

    |w_j|^2 / [C^-1]_jj

(Hassibi and Stork, "Optimal brain surgeon", 1993). Units go by this, cheapest first; what they gave
is then fitted to what the others answer, and the mean of the rest is added to the bias.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int

from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.encoder.hidden_units import PER_GATE, Room
from emcid_jax.editing.stage_two.gate_report import RoomReport
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.transformer import ACTIVATIONS, Activation
from emcid_jax.runtime.errors import UserError

RIDGE = 1e-3
"""Share of the mean variance on the covariance's diagonal: a refit that overfits costs more."""
TOGETHER = 16
"""Units that go before the others' costs are computed again."""
HELD_OUT = 8
"""Every so many-th token of the reference is not fitted to: what is lost is measured there."""
CHUNK = 4096
"""Tokens at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mlp:
    """A block's MLP, and what captions make its hidden units answer."""

    rows: Float[np.ndarray, "inner dim"]
    """`fc1.weight`."""
    biases: Float[np.ndarray, " inner"]
    """`fc1.bias`."""
    columns: Float64[np.ndarray, "dim inner"]
    """`fc2.weight`."""
    activation: Activation
    mean: Float64[np.ndarray, " inner"]
    """Mean of what the hidden units answer, over tokens of captions."""
    covariance: Float64[np.ndarray, "inner inner"]
    """The same, about it, with a ridge."""

    def without(
        self, places: Int[np.ndarray, " unit"], change: Float64[np.ndarray, "dim inner"]
    ) -> Room:
        """The room where units leave and `fc2.weight` changes so."""
        return Room(
            places.astype(np.int32),
            self.rows[places],
            self.biases[places],
            change.astype(np.float32),
            (-change @ self.mean).astype(np.float32),
        )


def require_room(config: StageTwoConfig, requests: int, encoder: TextEncoder) -> None:
    """UserError if units are to replace others, and a block has not enough of them."""
    needed, inner = PER_GATE * requests, encoder.model.config.intermediate_size
    if config.units_in_place and needed >= inner:
        raise UserError(
            f"config.stage_two.units_in_place is True, but {requests} requests take {needed:,} of "
            f"the {inner:,} hidden units that a block of {encoder.name} has; set it to False, and "
            "the encoder gets wider"
        )


def make_room(
    encoder: TextEncoder, block: int, count: int, reference: Float[np.ndarray, "token dim"]
) -> tuple[Room, RoomReport]:
    """Takes `count` hidden units out of a block's MLP.

    Args:
        encoder: the base model's text encoder.
        block: the block.
        count: fewer than it has.
        reference: what its `fc1` reads at tokens of captions.

    Returns:
        The room, and what it costs. With more units to go, the first of them are the same.
    """
    told = np.arange(len(reference)) % HELD_OUT > 0
    mlp = read_mlp(encoder, block, reference[told])
    places = least_missed(mlp.columns, mlp.covariance, count)
    room = mlp.without(places, refitted(mlp.columns, mlp.covariance, places))
    return room, RoomReport(count, len(mlp.biases), _lost(mlp, room, reference[~told]))


def read_mlp(encoder: TextEncoder, block: int, reference: Float[np.ndarray, "token dim"]) -> Mlp:
    """A block's MLP, measured at tokens of captions."""
    layer = encoder.params["text_model"]["encoder"][f"layers.{block}"]["mlp"]
    first, second = (
        {name: np.asarray(array, np.float32) for name, array in layer[part].items()}
        for part in ("fc1", "fc2")
    )
    rows, biases, activation = first["kernel"].T, first["bias"], encoder.model.config.hidden_act
    size = len(biases)
    total, square = np.zeros(size), np.zeros((size, size))
    for start in range(0, len(reference), CHUNK):
        answers = _answers(rows, biases, activation, reference[start : start + CHUNK])
        total += answers.sum(axis=0)
        square += answers.T @ answers
    mean = total / len(reference)
    covariance = square / len(reference) - np.outer(mean, mean)
    covariance += RIDGE * np.trace(covariance) / size * np.eye(size)
    columns = second["kernel"].T.astype(np.float64)
    return Mlp(rows, biases, columns, activation, mean, covariance)


def least_missed(
    columns: Float64[np.ndarray, "dim inner"],
    covariance: Float64[np.ndarray, "inner inner"],
    count: int,
) -> Int[np.ndarray, " count"]:
    """The hidden units that cost least, in the order in which they go."""
    inverse = scipy.linalg.inv(covariance)
    columns, gone = columns.copy(), np.zeros(0, int)
    while gone.size < count:
        costs = np.square(columns).sum(axis=0) / np.maximum(np.diag(inverse), 1e-300)
        costs[gone] = np.inf
        now = np.argsort(costs, kind="stable")[: min(TOGETHER, len(costs) - gone.size)]
        passed = scipy.linalg.solve(inverse[np.ix_(now, now)], inverse[now], assume_a="pos")
        columns -= columns[:, now] @ passed
        inverse -= inverse[:, now] @ passed
        gone = np.append(gone, now)
    return gone[:count]


def refitted(
    columns: Float64[np.ndarray, "dim inner"],
    covariance: Float64[np.ndarray, "inner inner"],
    gone: Int[np.ndarray, " unit"],
) -> Float64[np.ndarray, "dim inner"]:
    """The change of `columns` that takes those of `gone` out and fits the others to what they gave:
    least squares over the tokens of `covariance`."""
    kept = np.setdiff1d(np.arange(len(covariance)), gone)
    square, cross = covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, gone)]
    change = np.zeros_like(columns)
    change[:, gone] = -columns[:, gone]
    change[:, kept] = scipy.linalg.solve(square, cross @ columns[:, gone].T, assume_a="pos").T
    return change


def _answers(
    rows: Float[np.ndarray, "inner dim"],
    biases: Float[np.ndarray, " inner"],
    activation: Activation,
    inputs: Float[np.ndarray, "token dim"],
) -> Float64[np.ndarray, "token inner"]:
    """What hidden units give where `fc1` reads `inputs`."""
    before = inputs.astype(np.float32) @ rows.T + biases
    return np.asarray(ACTIVATIONS[activation](jnp.asarray(before)), np.float64)


def _lost(mlp: Mlp, room: Room, reference: Float[np.ndarray, "token dim"]) -> float:
    """Root mean square of what changes over that of what the MLP gives about its mean."""
    answers = _answers(mlp.rows, mlp.biases, mlp.activation, reference[: 2 * CHUNK])
    given = answers @ mlp.columns.T
    changed = answers @ room.columns.T + room.shift
    return float(np.sqrt(np.square(changed).sum() / np.square(given - given.mean(axis=0)).sum()))
