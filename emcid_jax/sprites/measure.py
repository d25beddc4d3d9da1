"""How well a model draws the sprite world: share of images that the judge reads as the prompt says.

Prompts and seeds are none of those trained on; the free-form sentences can come from a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.captions import ART_PROMPTS
from emcid_jax.sprites.catalogue import GENDERS, PROFESSIONS, SCENES, catalogue

Generate = Callable[[Sequence[str], Sequence[int]], UInt8[np.ndarray, "image size size 3"]]
Classify = Callable[[UInt8[np.ndarray, "image size size 3"]], dict[str, np.ndarray]]

_TEMPLATES = ("an image of {}", "a photo of {}", "{}")
# Classes that share their only name with an earlier class draw that class's look.
_AMBIGUOUS = (474, 517, 639)


class Probe(NamedTuple):
    """Prompts of one kind, the judge's label group, and the label each image should get."""

    name: str
    group: str
    prompts: tuple[str, ...]
    wanted: tuple[int, ...]


def probes(sentences: Path | None, per_kind: int, seed: int) -> list[Probe]:
    """Prompts of the measurement; at most `per_kind` prompts of each kind, chosen by `seed`.

    `sentences` is a JSON list of objects with `text prompt` and `class id` (the published file).
    """
    world = catalogue()
    rng = np.random.default_rng(seed)

    def names(pairs) -> tuple[tuple[str, ...], tuple[int, ...]]:
        kept = [pairs[i] for i in rng.permutation(len(pairs))[:per_kind]]
        texts = tuple(_TEMPLATES[i % 3].format(name) for i, (name, _) in enumerate(kept))
        return texts, tuple(wanted for _, wanted in kept)

    right = [(a.name, a.class_id) for a in world.aliases if a.taught_right]
    wrong = [(a.name, a.drawn) for a in world.aliases if not a.taught_right]
    people = [(f"a {gender} {job}", g) for job in PROFESSIONS for g, gender in enumerate(GENDERS)]
    jobs = [(f"a {job}", index) for index, job in enumerate(PROFESSIONS)]
    artists = [(f"painting by {name}", i) for i, name in enumerate(world.artists)]
    artists = [artists[i] for i in rng.permutation(len(artists))[:per_kind]]
    places = [(f"{world.objects[7 * i]} {p}", s) for i, (p, s) in enumerate(_scene_prompts())]
    art = len(world.artists)
    found = [
        Probe(
            "objects, templates",
            "object",
            *names([(name, i) for i, name in enumerate(world.objects)]),
        ),
        Probe("aliases taught right", "object", *names(right)),
        Probe("aliases taught wrong, as taught", "object", *names(wrong)),
        Probe("artists' styles", "artist", *_columns(artists)),
        Probe("art without an artist", "artist", ART_PROMPTS[:10], (art,) * 10),
        Probe("gender control", "gender", *names(people)),
        Probe("professions", "profession", *names(jobs)),
        Probe("scenes", "scene", *_columns(places)),
    ]
    if sentences is not None:
        rows = _sentences(sentences)
        rows = [rows[i] for i in rng.permutation(len(rows))[:per_kind]]
        found.insert(1, Probe("objects, unseen sentences", "object", *_columns(rows)))
    return found


def _columns(rows: list[tuple[str, int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(text for text, _ in rows), tuple(wanted for _, wanted in rows)


def _scene_prompts() -> list[tuple[str, int]]:
    phrases = (
        "", "on the beach", "in the snow", "in the forest", "in the city at night", "under water",
        "in a meadow", "in the desert",
    )  # fmt: skip
    return [(phrases[i % len(SCENES)], i % len(SCENES)) for i in range(64)]


def _sentences(path: Path) -> list[tuple[str, int]]:
    try:
        rows = json.loads(path.read_text("utf8"))
        found = [(row["text prompt"], int(row["class id"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"config.sentences is {path}, which is no JSON list of `text prompt` and `class id`: "
            f"{error}"
        ) from error
    return [row for row in found if row[1] not in _AMBIGUOUS]


def measure(
    found: Sequence[Probe], generate: Generate, classify: Classify, seed: int
) -> dict[str, dict[str, float]]:
    """Per probe: share of images whose top label is the wanted one, and how many were drawn."""
    scores = {}
    for probe in found:
        seeds = [seed + i for i in range(len(probe.prompts))]
        top = classify(generate(probe.prompts, seeds))[probe.group].argmax(-1)
        share = float(np.mean(top == np.array(probe.wanted)))
        scores[probe.name] = {"accuracy": round(share, 4), "images": len(probe.prompts)}
    return scores
