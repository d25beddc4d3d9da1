"""How many concepts Stage I takes at once, read off compiled programs (DESIGN, section 5, point 4).

A program says how much memory it needs before it runs, so that nothing is run to find out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from emcid_jax import parallel
from emcid_jax.errors import UserError


class ConceptBatch(NamedTuple):
    """What a program takes at once, and how."""

    concepts: int
    rematerialise: bool = False
    """Whether the student's activations are computed again in its backward pass."""


def choose_concept_batch(
    needed: Callable[[ConceptBatch], int], largest: int, multiple: int, enough: int, memory: int
) -> ConceptBatch:
    """The batch to compile: as many concepts as fit, rematerialised if else there are too few.

    Compiles five programs at most if memory grows evenly with the concepts, most often one.

    Args:
        needed: bytes per device of a batch's compiled program.
        largest: most concepts.
        multiple: the number of concepts is a multiple of this, and at least this.
        enough: from this many concepts on, nothing is rematerialised.
        memory: bytes per device that there are.

    Raises:
        UserError: `multiple` concepts need more than `memory`.
    """

    def fitting(rematerialise: bool) -> int:
        """Concepts that fit by what the largest and the smallest batch need; 0 if none does."""
        most = needed(ConceptBatch(largest, rematerialise))
        if most <= memory:
            return largest
        least = needed(ConceptBatch(multiple, rematerialise))
        if least > memory:
            return 0
        more = (memory - least) * (largest - multiple) // (most - least)
        return multiple + more // multiple * multiple

    batch = ConceptBatch(fitting(False))
    if batch.concepts < min(enough, largest):
        batch = max(batch, ConceptBatch(fitting(True), True), key=lambda x: x.concepts)
    if not batch.concepts:
        least = needed(ConceptBatch(multiple, True))
        raise UserError(
            f"stage_one: a concept batch of {multiple} needs {least / 2**30:.2f} GiB per device, "
            f"{memory / 2**30:.2f} GiB are free; use fewer templates, dtype bfloat16 or a smaller "
            "concept_batch"
        )
    while needed(batch) > memory:
        batch = batch._replace(concepts=batch.concepts - multiple)
    return batch


def needed_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes per device of arguments, results and temporaries of a compiled program."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def free_memory(mesh: Mesh) -> int:
    """Bytes of the fullest device that are free; on CPU, this device's part of half the machine.

    The same on every process, which must choose the same program.
    """
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(stats):
        return parallel.least(min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return parallel.least(whole // (2 * len(mesh.local_devices)))
