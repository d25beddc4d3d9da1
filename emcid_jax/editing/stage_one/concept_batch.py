"""How many concepts Stage I takes at once, read off compiled programs (docs/stage_one.md).

A program says how much memory it needs before it runs, so that nothing is run to find out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError

UNKNOWN = 2**60
"""Bytes that a program needs whose compiler only said that they are too many."""


class ConceptBatch(NamedTuple):
    """What a program takes at once, and how."""

    concepts: int
    one_by_one: bool = False
    """Whether the student takes a concept's prompts one after another, see `prompt_by_prompt`."""


def choose_concept_batch(
    needed: Callable[[ConceptBatch], int],
    estimated: Callable[[ConceptBatch], int],
    largest: int,
    multiple: int,
    enough: int,
    memory: int,
) -> ConceptBatch:
    """The batch to compile: as many concepts as fit, with prompts one by one if else too few.

    Compiles few programs: one if an estimate says that the largest fits, and it does; else about
    two, for the estimate says where to look and its errors are the same from batch to batch.

    Args:
        needed: bytes per device of a batch's compiled program.
        estimated: the same without compiling, roughly.
        largest: most concepts.
        multiple: the number of concepts is a multiple of this, and at least this.
        enough: from this many concepts on, prompts are taken all at once.
        memory: bytes per device that there are.

    Raises:
        UserError: `multiple` concepts need more than `memory`.
    """

    def fitting(one_by_one: bool) -> int:
        """Most concepts that fit; 0 if not even the smallest batch does."""

        def batch(concepts: int) -> ConceptBatch:
            return ConceptBatch(concepts, one_by_one)

        def within(points: Sequence[tuple[int, int]], room: int) -> int:
            """How many fit by the line through two points (concepts, bytes)."""
            (few, less), (many, more) = sorted(points)
            slope = max((more - less) / (many - few), 1e-9)
            return int(min(few + (room - less) / slope, largest)) // multiple * multiple

        known: dict[int, int] = {}
        fit, unfit = 0, largest + multiple

        def expected() -> int:
            """Where the largest batch that fits should be."""
            nearest = sorted(known.items(), key=lambda point: abs(point[1] - memory))[:2]
            if len(nearest) == 2:
                return within(nearest, memory)
            if not nearest and unfit <= largest:  # Refused without a figure.
                return (fit + unfit) // 2 // multiple * multiple
            if not nearest and (multiple == largest or estimated(batch(largest)) <= memory):
                return largest
            line = [(n, estimated(batch(n))) for n in (multiple, largest)]
            # The estimate's error is taken for a factor.
            concepts, size = nearest[0] if nearest else line[0]
            return within(line, memory * estimated(batch(concepts)) // size)

        while unfit - fit > multiple:
            wanted = expected()
            if fit > 0 and wanted <= fit:
                break
            guess = min(max(wanted, fit + multiple), unfit - multiple)
            found = needed(batch(guess))
            fit, unfit = (guess, unfit) if found <= memory else (fit, guess)
            if found < UNKNOWN:
                known[guess] = found
        return fit

    batch = ConceptBatch(fitting(False))
    if batch.concepts < min(enough, largest):
        batch = max(batch, ConceptBatch(fitting(True), True), key=lambda x: x.concepts)
    if not batch.concepts:
        least = needed(ConceptBatch(multiple, True))
        size = f"{least / 2**30:.2f} GiB" if least < UNKNOWN else "more"
        raise UserError(
            f"stage_one: a concept batch of {multiple} needs {size} per device, "
            f"{memory / 2**30:.2f} GiB are free; use fewer templates, dtype bfloat16 or a smaller "
            "concept_batch"
        )
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


def refused_memory(error: jax.errors.JaxRuntimeError) -> int:
    """Bytes per device that a program needs which a compiler refused because they are not there.

    As the compiler says; `UNKNOWN` if it does not say how many. Other errors are raised again.
    """
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        raise error
    found = _REFUSED.search(message)
    return int(float(found[1]) * 2 ** _POWERS[found[2]]) if found else UNKNOWN


_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40}
# libtpu: "... required for HLO temporaries (32.00G) exceeds available HBM", "Used 17.2G of 15.75G".
_REFUSED = re.compile(r"(?:\(|Used )(\d+(?:\.\d+)?)([KMGT])")


def free_memory(mesh: Mesh) -> int:
    """Bytes of the fullest device that are free; on CPU, this device's part of half the machine.

    The same on every process, which must choose the same program.
    """
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(stats):
        return parallel.least(min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return parallel.least(whole // (2 * len(mesh.local_devices)))
