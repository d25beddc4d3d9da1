"""The concept bank: which concepts an edit consists of, how strongly, and their memories.

A bank is a folder of memories (`bank`) with one list, `concepts.json`, of those that are in it.
Every change of the list is one rename under a lock, and memories are written before the list names
them: whenever a process dies the folder is a valid bank, and several processes may read and change
it at the same time. Removing a concept leaves its memory behind, so adding it again costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.concepts.conflicts import require_consistent
from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import NotNegative
from emcid_jax.editing.bank import memories, pack_file
from emcid_jax.editing.bank.memories import Record
from emcid_jax.runtime.errors import UserError, first_line, shown
from emcid_jax.runtime.typed_values import convert
from emcid_jax.storage import checksums, ownership
from emcid_jax.storage.files import open_to_read, require_plain, sweep, write_atomically
from emcid_jax.storage.locks import held

LIST, LOCK = "concepts.json", ".lock"
FORMAT = 1
PACKED = 256
"""So many memories outside the pack make a change of the list write a new one."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """A member of a bank."""

    request: EditRequest
    memory: str
    """Name of its memory, see `memories.key`."""
    strength: float = 1.0
    """How much of the memory's offset is written: the target is h0 + strength * delta. 0 leaves
    the concept out of the edit but in the bank."""


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptBank:
    """Concepts with their memories, ordered by the memories' names: no history is left in it."""

    concepts: tuple[Concept, ...]
    records: Mapping[str, Record]
    """By name: the record of every concept."""

    @property
    def active(self) -> tuple[Concept, ...]:
        """The concepts that an edit writes: those of strength > 0."""
        return tuple(concept for concept in self.concepts if concept.strength > 0)


def of_requests(requests: Sequence[EditRequest], records: Sequence[Record]) -> ConceptBank:
    """The bank of requests and their records, in memory. UserError if they contradict."""
    names = [memories.key(record.provenance) for record in records]
    concepts = map(Concept, requests, names)
    return ConceptBank(united(concepts), dict(zip(names, records, strict=True)))


def open_bank(folder: Path) -> ConceptBank:
    """Reads a bank and checks every byte of it.

    UserError naming every file that is missing or damaged.
    """
    concepts = read_list(folder)
    _, records = _read(folder, concepts)
    return ConceptBank(concepts, records)


def read_list(folder: Path) -> tuple[Concept, ...]:
    """The concepts of the bank in `folder`, in canonical order; memories are not read."""
    path = folder / LIST
    try:
        with open_to_read(path) as file:
            content = file.read()
        if not checksums.is_intact(content):
            raise ValueError("its checksum does not fit")
        return tuple(_from_json(entry, str(folder)) for entry in json.loads(content)["concepts"])
    except FileNotFoundError:
        raise UserError(f"{folder} is no concept bank (it has no {LIST}); give another") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); restore it") from error


def update(
    folder: Path, change: Callable[[tuple[Concept, ...]], Iterable[Concept]]
) -> tuple[Concept, ...]:
    """Replaces the list of the bank in `folder` (made if there is none) by `change` of it.

    One process at a time, by one rename; gives the new list. UserError, with nothing changed, if
    the new concepts contradict each other.
    """
    require_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK, f"the bank is {str(folder)!r}", wait=True):
        sweep(folder)
        old = read_list(folder) if (folder / LIST).exists() else ()
        new = united(change(old))
        lines = ",\n".join(json.dumps(_to_json(c), ensure_ascii=False) for c in new)
        head = f'{{"format": {FORMAT}, "checksum": "{checksums.UNSEALED}", "concepts": [\n'
        write_atomically(folder / LIST, checksums.sealed(f"{head}{lines}\n]}}\n".encode()))
        if len({c.memory for c in new} - pack_file.names(folder)) >= PACKED:
            pack_file.write(folder, _read(folder, new)[0])
    return new


def require_usable(folder: Path) -> tuple[Concept, ...]:
    """The concepts in `folder`, if any. UserError if a bank must not be made or changed there;
    touches nothing."""
    said = f"the bank is {str(folder)!r}"
    ownership.require_apart(folder, said)
    require_plain(folder / LIST)
    require_plain(folder / LOCK)
    if (folder / LIST).exists():
        return read_list(folder)
    ownership.require_free(folder, (pack_file.FILE,), said)
    return ()


def add(folder: Path, concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """Adds concepts whose memories lie in `folder`; those that are there already stay.

    UserError, with nothing changed, if one is there already with another memory.
    """
    added = list(concepts)
    return update(folder, lambda old: _added(old, added))


def require_addable(folder: Path, concepts: Iterable[Concept]) -> None:
    """UserError if `add` would refuse the concepts."""
    united(_added(require_usable(folder), list(concepts)))


def put(folder: Path, concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """Adds concepts as `add` does, but those of the same memories as theirs are replaced."""
    return update(folder, functools.partial(_put, list(concepts)))


def require_puttable(folder: Path, concepts: Iterable[Concept]) -> None:
    """UserError if `put` would refuse the concepts."""
    united(_put(list(concepts), require_usable(folder)))


def merge(folder: Path, other: Path) -> tuple[Concept, ...]:
    """Adds all concepts of the bank `other`, with their memories, to the bank in `folder`."""
    concepts = read_list(other)
    require_addable(folder, concepts)
    for concept in concepts:
        memories.copy_record(other, folder, concept.memory)
    return add(folder, concepts)


def remove(folder: Path, chosen: Iterable[Concept]) -> tuple[Concept, ...]:
    """Takes concepts out of the bank in `folder`; their memories stay on disk."""
    names = {concept.memory for concept in chosen}
    return update(folder, lambda old: [c for c in old if c.memory not in names])


def set_strength(folder: Path, chosen: Iterable[Concept], strength: float) -> tuple[Concept, ...]:
    """Gives concepts of the bank in `folder` another strength (>= 0)."""
    if not (np.isfinite(strength) and strength >= 0):
        raise UserError(f"strength is {strength}; give a number >= 0")
    names = {concept.memory for concept in chosen}
    return update(
        folder,
        lambda old: [
            dataclasses.replace(c, strength=strength) if c.memory in names else c for c in old
        ],
    )


def united(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """The concepts as a set, in canonical order: by the memories' names.

    UserError naming those that contradict: one source with several destinations, or one memory
    with several weights or strengths.
    """
    found: dict[str, Concept] = {}
    problems = []
    for concept in concepts:
        first = found.setdefault(concept.memory, concept)
        for field, now, before in (
            ("weight", concept.request.weight, first.request.weight),
            ("strength", concept.strength, first.strength),
        ):
            if now != before:
                problems.append(
                    f"{concept.request.origin}: {field} of {concept.request.source!r} is {now}, "
                    f"but {first.request.origin} has {before}; make them equal"
                )
    if problems:
        raise UserError("\n".join(problems))
    ordered = tuple(found[name] for name in sorted(found))
    require_consistent([concept.request for concept in ordered])
    return ordered


def _read(folder: Path, concepts: Sequence[Concept]) -> tuple[dict[str, bytes], dict[str, Record]]:
    """By name: bytes from the pack or its own file, and record; UserError naming all damaged."""
    packed = pack_file.read(folder)
    contents: dict[str, bytes] = {}
    records: dict[str, Record] = {}
    damaged = []
    for name in (concept.memory for concept in concepts):
        try:
            contents[name] = packed.get(name) or memories.read_content(folder, name)
            records[name] = memories.parse_record(contents[name], name, folder)
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError("\n".join(damaged))
    return contents, records


def _added(old: Sequence[Concept], added: Sequence[Concept]) -> list[Concept]:
    """Both; UserError if a new one asks what an old one does, but has another memory."""
    known = {identity(concept.request): concept for concept in old}
    for concept in added:
        request = concept.request
        if known.get(identity(request), concept).memory != concept.memory:
            raise UserError(
                f"{request.origin}: {request.source!r} is in the bank with other templates, seed, "
                "settings or model; remove it first, or add it with the same"
            )
    return [*old, *added]


def _put(new: Sequence[Concept], old: Sequence[Concept]) -> list[Concept]:
    names = {concept.memory for concept in new}
    return [*new, *(concept for concept in old if concept.memory not in names)]


def identity(request: EditRequest) -> tuple[str, ...]:
    """What a request asks: source and destinations, however they are written."""
    return (normalised(request.source), *(normalised(dest) for dest in request.dests))


def _to_json(concept: Concept) -> dict[str, Any]:
    """Without the request's defaults and origin."""
    asked = {
        field.name: getattr(concept.request, field.name)
        for field in dataclasses.fields(EditRequest)
        if field.compare and getattr(concept.request, field.name) != field.default
    }
    return {"memory": concept.memory, "strength": concept.strength, "request": asked}


def _from_json(entry: Mapping[str, Any], origin: str) -> Concept:
    asked: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry["request"].items()
    }
    strength = convert(entry["strength"], NotNegative, "strength")
    if not re.fullmatch("[0-9a-f]{64}", entry["memory"]):
        raise ValueError(f"{shown(entry['memory'])} is no name of a memory")
    return Concept(EditRequest(**asked, origin=origin), entry["memory"], strength)
