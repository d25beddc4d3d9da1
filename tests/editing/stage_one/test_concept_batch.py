"""How many concepts fit: against trying every number, and how many programs finding out takes."""

from __future__ import annotations

import jax
import pytest

from emcid_jax.editing.stage_one.concept_batch import (
    UNKNOWN,
    ConceptBatch,
    choose_concept_batch,
    refused_memory,
)
from emcid_jax.runtime.errors import UserError

LARGEST, ENOUGH = 40, 4
"""Concepts per device."""


def needed(batch: ConceptBatch, devices: int) -> int:
    """100 bytes per device and 50 per concept on it; with prompts one by one 12."""
    return 100 + (12 if batch.one_by_one else 50) * batch.concepts // devices


def by_trying(devices: int, memory: int, one_by_one: bool) -> int:
    sizes = range(devices, devices * LARGEST + 1, devices)
    fits = (n for n in sizes if needed(ConceptBatch(n, one_by_one), devices) <= memory)
    return max(fits, default=0)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("memory", [112, 150, 249, 299, 300, 333, 499, 10_000])
@pytest.mark.parametrize("error", [(1.0, 0.0), (0.6, 0.0), (1.5, 40.0)])
def test_batch_is_as_large_as_memory_allows(
    devices: int, memory: int, error: tuple[float, float]
) -> None:
    """However wrong the estimate is; a wrong one costs a compilation or two."""
    asked = set()

    def ask(batch: ConceptBatch) -> int:
        asked.add(batch)
        return needed(batch, devices)

    def estimate(batch: ConceptBatch) -> int:
        return int(error[0] * needed(batch, devices) + error[1])

    got = choose_concept_batch(ask, estimate, LARGEST * devices, devices, ENOUGH * devices, memory)
    wanted = ConceptBatch(by_trying(devices, memory, False))
    if wanted.concepts < ENOUGH * devices:
        wanted = ConceptBatch(by_trying(devices, memory, True), True)
    assert got == wanted
    ways = 2 if got.one_by_one else 1
    assert len(asked) <= ways * (2 if error == (1.0, 0.0) else 4)


def test_prompts_are_taken_one_by_one_only_where_it_helps() -> None:
    def alike(batch: ConceptBatch) -> int:
        return 100 * batch.concepts

    assert choose_concept_batch(alike, alike, LARGEST, 1, ENOUGH, 250) == ConceptBatch(2)


def test_memory_that_grows_unevenly_is_not_exceeded() -> None:
    """The batch's own program decides, not what others suggest."""

    def bumpy(batch: ConceptBatch) -> int:
        return 100 * batch.concepts + 70 * (batch.concepts % 10 > 5)

    def even(batch: ConceptBatch) -> int:
        return 100 * batch.concepts

    assert choose_concept_batch(bumpy, even, LARGEST, 1, ENOUGH, 1600) == ConceptBatch(15)


@pytest.mark.parametrize("optimism", [1.0, 5.0])
def test_refusals_without_a_figure_are_searched_around(optimism: float) -> None:
    """A compiler that does not say how much was too much."""

    def refusing(batch: ConceptBatch) -> int:
        size = needed(batch, 1)
        return size if size <= 1000 else UNKNOWN

    def estimate(batch: ConceptBatch) -> int:
        return int(needed(batch, 1) / optimism)

    got = choose_concept_batch(refusing, estimate, LARGEST, 1, ENOUGH, 1000)
    assert got == ConceptBatch(18)


def test_a_batch_of_ones_own_is_one_program() -> None:
    asked = []

    def ask(batch: ConceptBatch) -> int:
        asked.append(batch)
        return 100

    assert choose_concept_batch(ask, ask, 8, 8, 8, 100) == ConceptBatch(8)
    assert set(asked) == {ConceptBatch(8)}


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (32.00G) exceeds available HBM (15.75G).",
            32 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 17.50G of 15.75G hbm.",
            int(17.5 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: Out of memory", UNKNOWN),
    ],
)
def test_a_refusal_says_what_was_needed(message: str, size: int) -> None:
    assert refused_memory(jax.errors.JaxRuntimeError(message)) == size


def test_other_failures_are_not_about_memory() -> None:
    error = jax.errors.JaxRuntimeError("INTERNAL: (3.00G) nonsense")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refused_memory(error)


def test_too_little_memory_is_said() -> None:
    def size(batch: ConceptBatch) -> int:
        return batch.concepts * 2**31

    with pytest.raises(UserError, match=r"concept batch of 2 needs 4\.00 GiB .*1\.00 GiB are free"):
        choose_concept_batch(size, size, 4, 2, 1, 2**30)
