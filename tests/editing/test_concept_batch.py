"""How many concepts fit: against trying every number, and how many programs finding out takes."""

from __future__ import annotations

import pytest

from emcid_jax.editing.concept_batch import ConceptBatch, choose_concept_batch
from emcid_jax.errors import UserError

LARGEST, ENOUGH = 40, 4
"""Concepts per device."""


def needed(batch: ConceptBatch, devices: int) -> int:
    """100 bytes per device and 50 per concept on it; rematerialised 12."""
    return 100 + (12 if batch.rematerialise else 50) * batch.concepts // devices


def by_trying(devices: int, memory: int, rematerialise: bool) -> int:
    sizes = range(devices, devices * LARGEST + 1, devices)
    fits = (n for n in sizes if needed(ConceptBatch(n, rematerialise), devices) <= memory)
    return max(fits, default=0)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("memory", [112, 150, 249, 299, 300, 333, 499, 10_000])
def test_batch_is_as_large_as_memory_allows(devices: int, memory: int) -> None:
    asked = set()

    def ask(batch: ConceptBatch) -> int:
        asked.add(batch)
        return needed(batch, devices)

    got = choose_concept_batch(ask, LARGEST * devices, devices, ENOUGH * devices, memory)
    wanted = ConceptBatch(by_trying(devices, memory, False))
    if wanted.concepts < ENOUGH * devices:
        wanted = ConceptBatch(by_trying(devices, memory, True), True)
    assert got == wanted
    assert len(asked) <= (5 if got.rematerialise else 3)


def test_nothing_is_rematerialised_in_vain() -> None:
    def alike(batch: ConceptBatch) -> int:
        return 100 * batch.concepts

    assert choose_concept_batch(alike, LARGEST, 1, ENOUGH, 250) == ConceptBatch(2)


def test_memory_that_grows_unevenly_is_not_exceeded() -> None:
    """The batch's own program decides, not what the largest and the smallest suggest."""

    def bumpy(batch: ConceptBatch) -> int:
        return 100 * batch.concepts + 70 * (batch.concepts % 10 > 5)

    assert choose_concept_batch(bumpy, LARGEST, 1, ENOUGH, 1600) == ConceptBatch(15)


def test_too_little_memory_is_said() -> None:
    with pytest.raises(UserError, match=r"concept batch of 2 needs 4\.00 GiB .*1\.00 GiB are free"):
        choose_concept_batch(lambda batch: batch.concepts * 2**31, 4, 2, 1, 2**30)
