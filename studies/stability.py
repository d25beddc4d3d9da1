"""`python -m studies.stability`: how exact Stage II's linear systems are, as Markdown tables.

Keys and second moments are the sprite model's, residuals are random. The reference is the float64
solution refined with residuals in 80-bit arithmetic; every error is |dW - reference| / |reference|.
`docs/stability.md` explains the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from benchmarks import workload
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.nullspace import nullspace
from emcid_jax.editing.stage_two.ridge import ridge
from emcid_jax.editing.stage_two.ridge_on_device import device_ridge
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.catalogue import catalogue

LAYERS = (0, 10)
COUNTS = (1, 100, 1000, 1900)
STRENGTHS = (4000.0, 1.0, 1e-12)


class Problem(NamedTuple):
    """What a solver gets, weights being 1."""

    keys: Float64[np.ndarray, "request key"]
    residuals: Float64[np.ndarray, "request out"]
    moment: Moment


class Errors(NamedTuple):
    """One line: a problem by every way of solving it; NaN where a way fails."""

    form: str
    condition: float
    single: float
    """Float32 throughout, Cholesky of the primal system."""
    double: float
    """`ridge.ridge`: float64 on the host."""
    refined: float
    """`ridge_on_device.device_ridge`, also where it falls back on the host."""
    claimed: float
    """The error that `device_ridge` says its own result had; above 1e-6 it is not used."""
    left: float
    """|R - dW K| / |R| of the reference."""


def compare(problem: Problem, strength: float) -> Errors:
    """One problem by every way of solving it."""
    ones = np.ones(len(problem.keys))
    arguments = (problem.keys, problem.residuals, problem.moment, ones, strength)
    host = ridge(*arguments)
    wanted = reference(problem, strength, host.delta)
    with _silent():
        device = device_ridge(*arguments)
    left = problem.residuals - problem.keys @ wanted.T
    return Errors(
        host.form,
        host.condition,
        relative(single(problem, strength), wanted),
        relative(host.delta, wanted),
        relative(device.delta, wanted),
        1.0 if device.device_error is None else device.device_error,
        float(np.linalg.norm(left) / np.linalg.norm(problem.residuals)),
    )


def single(problem: Problem, strength: float) -> Float64[np.ndarray, "out key"]:
    """What float32 alone gives; NaN where its Cholesky factor does not exist."""
    keys, residuals = (np.asarray(x, np.float32) for x in (problem.keys, problem.residuals))
    matrix = keys.T @ keys + np.float32(strength) * problem.moment.matrix.astype(np.float32)
    try:
        factor = scipy.linalg.cho_factor(matrix)
    except np.linalg.LinAlgError:
        return np.full((residuals.shape[1], keys.shape[1]), np.nan)
    return np.asarray(scipy.linalg.cho_solve(factor, keys.T @ residuals).T, np.float64)


def reference(
    problem: Problem, strength: float, start: Float64[np.ndarray, "out key"], rounds: int = 3
) -> Float64[np.ndarray, "out key"]:
    """`start` refined: the dual's corrections, of residuals computed with 64 bits of mantissa.

    With requests fewer than key dimensions the solution is R^T (strength I + K C^-1 K^T)^-1 K C^-1;
    the two systems are refined one after the other.
    """
    long = np.longdouble
    keys, residuals = problem.keys.astype(long), problem.residuals.astype(long)
    if len(keys) >= keys.shape[1]:
        system = keys.T @ keys + long(strength) * problem.moment.matrix.astype(long)
        return np.asarray(_refined(system, keys.T @ residuals, rounds).T, np.float64)
    spread = _refined(problem.moment.matrix.astype(long), keys.T, rounds)
    inner = keys @ spread + long(strength) * np.eye(len(keys), dtype=long)
    mixed = _refined(inner, residuals, rounds)
    return np.asarray((spread @ mixed).T, np.float64)


def _refined(matrix: np.ndarray, right: np.ndarray, rounds: int) -> np.ndarray:
    """`matrix^-1 right` in long double, from a float64 factor."""
    factor = scipy.linalg.lu_factor(matrix.astype(np.float64))

    def roughly(rows: np.ndarray) -> np.ndarray:
        return scipy.linalg.lu_solve(factor, rows.astype(np.float64)).astype(np.longdouble)

    solution = roughly(right)
    for _ in range(rounds):
        solution = solution + roughly(right - matrix @ solution)
    return solution


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """|found - wanted| / |wanted|."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def duplicates(problem: Problem, strength: float) -> tuple[float, float]:
    """Condition when the first key comes twice, and how far its answer is from the mean asked."""
    keys = np.concatenate([problem.keys, problem.keys[:1]])
    residuals = np.concatenate([problem.residuals, -problem.residuals[:1] / 2])
    solution = ridge(keys, residuals, problem.moment, np.ones(len(keys)), strength)
    mean = residuals[0] / 4
    distance = np.linalg.norm(solution.delta @ keys[0] - mean) / np.linalg.norm(mean)
    return solution.condition, float(distance)


def singular(problem: Problem) -> Iterator[tuple[str, str]]:
    """Systems that have no solution, and what the user reads."""
    few = problem.keys[:5]
    lost = Moment(few.T @ few)
    held = problem.keys[:1]
    ones = np.ones(3)
    keys, residuals = problem.keys[:3], problem.residuals[:3]
    cases: dict[str, Callable[[], object]] = {
        "second moments of 5 tokens": lambda: ridge(keys, residuals, lost, ones, 1.0),
        "null space of energy 0": lambda: nullspace(
            keys, residuals, problem.moment, ones, 1.0, held=held, energy=0.0
        ),
    }
    for name, solve in cases.items():
        try:
            solve()
        except UserError as error:
            yield name, str(error)
        else:
            yield name, "solved"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The device solver's warnings are columns of the table."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def problems(pipeline: Pipeline, moments: second_moment.SecondMoments) -> dict[int, Problem]:
    """Layer -> keys of the sprite world's objects and artists, with random residuals."""
    names = catalogue()
    requests = [EditRequest(name, "art", OBJECT_TEMPLATES) for name in names.objects[:950]]
    requests += [EditRequest(name, "art", ARTIST_TEMPLATES) for name in names.artists[:950]]
    order = np.random.default_rng(1).permutation(len(requests))
    keys = predicted_conflicts.clean_run(
        pipeline.encoder, [requests[i] for i in order], LAYERS
    ).keys
    size = pipeline.encoder.model.config.hidden_size
    residuals = np.random.default_rng(0).standard_normal((max(COUNTS), size))
    return {layer: Problem(keys[layer], residuals, moments.moment(layer)) for layer in LAYERS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints all tables."""
    options = _parse(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    moments = workload.moments(pipeline, options.captions, options.moments)
    found = problems(pipeline, moments)
    print("| layer | lambda | condition, one key twice | its answer from the mean |")
    print("|---" * 4 + "|")
    for layer, problem in found.items():
        few = Problem(problem.keys[:100], problem.residuals[:100], problem.moment)
        for strength in (1.0, 1e-6, 1e-12):
            condition, distance = duplicates(few, strength)
            print(f"| {layer} | {strength:g} | {condition:.0e} | {distance:.0e} |", flush=True)
    print("\n| singular | message |\n|---|---|")
    for name, message in singular(found[LAYERS[-1]]):
        print(f"| {name} | {message} |")
    columns = "form | condition | float32 | float64 | device | device's claim | unmet |"
    print(f"\n| layer | n | lambda | {columns}\n" + "|---" * 10 + "|")
    for layer, problem in found.items():
        for count in COUNTS:
            part = Problem(problem.keys[:count], problem.residuals[:count], problem.moment)
            for strength in STRENGTHS if count in (100, 1900) else STRENGTHS[:1]:
                errors = compare(part, strength)
                cells = [errors.form, *(f"{value:.0e}" for value in errors[1:])]
                print(f"| {layer} | {count} | {strength:g} | {' | '.join(cells)} |", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.stability", description=__doc__)
    parser.add_argument("--captions", type=int, default=5000, help="of the second moments")
    parser.add_argument("--moments", type=Path, help="read them from a workdir's file instead")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
