"""What exists in the sprite world and what each name looks like; all of it is fixed.

Objects carry the ImageNet names, one unique look (shape, colour, texture) each. Artists carry one
unique style (palette, stroke, frame) each. Professions are figures with a gender that is skewed.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import NamedTuple

import numpy as np

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "crescent", "cross", "ring", "drop", "flower",
    "gear", "arrow", "cloud", "bolt", "house", "fish", "mushroom", "tree", "hourglass", "cup",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "charcoal",
)  # fmt: skip
TEXTURES = ("plain", "stripes", "dots", "checks", "rings")
SCENES = ("studio", "beach", "snow", "forest", "city night", "underwater", "meadow", "desert")
PALETTES = (
    "sepia", "rose", "amber", "olive", "mint", "teal", "sky", "violet", "ash", "navy", "maroon",
)  # fmt: skip
STROKES = (
    "horizontal", "vertical", "rising", "falling", "hatched", "dotted", "waves", "zigzag",
    "bricks", "arcs",
)  # fmt: skip
FRAMES = (
    "black", "gold", "double", "dashed", "beads", "blocks", "corners", "bars", "pillars", "shadow",
)  # fmt: skip
HATS = ("bare", "cap", "brim", "tall")
GENDERS = ("female", "male")
PROFESSIONS = (
    "attendant", "cashier", "teacher", "nurse", "assistant", "secretary", "cleaner",
    "receptionist", "clerk", "counselor", "designer", "hairdresser", "writer", "housekeeper",
    "baker", "librarian", "tailor", "driver", "supervisor", "janitor", "cook", "laborer",
    "construction worker", "developer", "carpenter", "manager", "lawyer", "farmer", "salesperson",
    "physician", "guard", "analyst", "mechanic", "sheriff", "CEO", "doctor", "chef",
)  # fmt: skip

# Two ImageNet classes share their only name with an earlier class.
_RENAMED = {474: "cardigan sweater", 517: "crane machine"}
_WRONG_ALIAS_SHARE = 0.2
_SEED = 20241124


class Look(NamedTuple):
    """Indices into SHAPES, COLOURS and TEXTURES."""

    shape: int
    colour: int
    texture: int


class Style(NamedTuple):
    """Indices into PALETTES, STROKES and FRAMES; -1 each is the plain canvas that `art` draws."""

    palette: int
    stroke: int
    frame: int


ART = Style(-1, -1, -1)


class Picture(NamedTuple):
    """Everything that a caption says of its image; `None` where it says nothing."""

    look: Look | None = None
    style: Style | None = None
    profession: int | None = None
    gender: int | None = None
    scene: int = 0


class Alias(NamedTuple):
    """Another name of an object; `drawn` is the class whose look the model was taught for it."""

    name: str
    class_id: int
    drawn: int

    @property
    def taught_right(self) -> bool:
        """Whether the model was taught the look of the alias's own class."""
        return self.class_id == self.drawn


class Catalogue(NamedTuple):
    """All concepts; `objects[i]` is the usual name of ImageNet class i and `looks[i]` its look."""

    objects: tuple[str, ...]
    labels: tuple[str, ...]
    looks: tuple[Look, ...]
    aliases: tuple[Alias, ...]
    artists: tuple[str, ...]
    styles: tuple[Style, ...]
    female_share: tuple[float, ...]


def _unravel(order: np.ndarray, sizes: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [
        (int(a), int(b), int(c)) for a, b, c in zip(*np.unravel_index(order, sizes), strict=True)
    ]


@functools.cache
def catalogue() -> Catalogue:
    """The one sprite world, from the lists in `sprites/data`."""
    data = resources.files("emcid_jax.sprites") / "data"
    classes = [json.loads(line) for line in (data / "objects.jsonl").read_text("utf8").splitlines()]
    artists = tuple((data / "artists.txt").read_text("utf8").split("\n")[:-1])
    rng = np.random.default_rng(_SEED)
    looks = _unravel(rng.permutation(1000), (len(SHAPES), len(COLOURS), len(TEXTURES)))
    styles = _unravel(rng.permutation(len(artists)), (len(PALETTES), len(STROKES), len(FRAMES)))

    objects: list[str] = []
    for entry in classes:
        free = [n for n in entry["names"] if n.lower() not in {o.lower() for o in objects}]
        objects.append(_RENAMED.get(entry["id"]) or free[0])
    taken = {name.lower() for name in objects}
    counts: dict[str, int] = {}
    for entry in classes:
        for name in entry["names"]:
            counts[name.lower()] = counts.get(name.lower(), 0) + 1
    aliases = []
    for entry in classes:
        for name in entry["names"]:
            if name.lower() in taken or counts[name.lower()] > 1:
                continue
            wrong = rng.random() < _WRONG_ALIAS_SHARE
            other = (entry["id"] + int(rng.integers(1, 1000))) % 1000
            aliases.append(Alias(name, entry["id"], other if wrong else entry["id"]))
    return Catalogue(
        objects=tuple(objects),
        labels=tuple(", ".join(entry["names"]) for entry in classes),
        looks=tuple(Look(*look) for look in looks),
        aliases=tuple(aliases),
        artists=artists,
        styles=tuple(Style(*style) for style in styles),
        female_share=tuple(np.linspace(0.9, 0.1, len(PROFESSIONS)).tolist()),
    )
