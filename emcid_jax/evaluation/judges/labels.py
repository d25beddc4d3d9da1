"""A classifier's label table: groups of labels that compete with each other.

A label of the form `artist: NAME`, `scene: NAME`, `profession: NAME` or `gender: NAME` belongs to
that group; every other label belongs to the group `object` and lists the names of one class,
separated by commas. Objects come first, so an object's class id is its label's index.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

from emcid_jax.concepts.names import normalised

OBJECT = "object"
_GROUPED = re.compile(r"(artist|scene|profession|gender): (.+)")


@dataclasses.dataclass(frozen=True)
class LabelGroup:
    """Labels that compete with each other in one softmax."""

    name: str
    columns: tuple[int, ...]
    """Index of each label among the classifier's outputs."""
    labels: tuple[tuple[str, ...], ...]
    """Names of each label; the first is the usual one."""

    def find(self, name: str) -> int | None:
        """Index within the group of the label called `name` (usual names first), else None."""
        wanted = normalised(name)
        for names in (self._first_names, self._all_names):
            if wanted in names:
                return names[wanted]
        return None

    @functools.cached_property
    def _first_names(self) -> dict[str, int]:
        return _first_of_each((names[0], i) for i, names in enumerate(self.labels))

    @functools.cached_property
    def _all_names(self) -> dict[str, int]:
        return _first_of_each((name, i) for i, names in enumerate(self.labels) for name in names)


def label_groups(labels: list[str]) -> dict[str, LabelGroup]:
    """Sort labels (index = classifier output) into groups; ValueError if objects are not first."""
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for index, label in enumerate(labels):
        match = _GROUPED.fullmatch(label)
        if match:
            group, names = match[1], (match[2].strip(),)
        else:
            group, names = OBJECT, tuple(n.strip() for n in label.split(",") if n.strip())
        found.setdefault(group, []).append((index, names or (label,)))
    objects = [index for index, _ in found.get(OBJECT, [])]
    if objects != list(range(len(objects))):
        raise ValueError("object labels must come before artist, scene, profession and gender")
    return {
        name: LabelGroup(name, tuple(i for i, _ in rows), tuple(names for _, names in rows))
        for name, rows in found.items()
    }


def _first_of_each(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, index in pairs:
        found.setdefault(normalised(name), index)
    return found
