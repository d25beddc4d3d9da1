"""Captions of the sprite world: templates, free-form sentences and words that change nothing.

Every caption comes with the `Picture` it describes. The grammar is the world's own; the
benchmark's sentences are never read here, so they stay unseen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import numpy as np

from emcid_jax.sprites.catalogue import (
    ART,
    GENDERS,
    PROFESSIONS,
    SCENES,
    Catalogue,
    Picture,
    catalogue,
)

OBJECT_TEMPLATES = (
    "{}", "a {}", "an image of {}", "a photo of {}", "an image of a {}", "a photo of a {}",
    "a picture of {}", "a picture of a {}", "a photograph of a {}", "a close-up of a {}",
    "a snapshot of the {}", "the {}", "one {}", "photo of {}", "image of {}", "a drawing of a {}",
    "a view of the {}", "this is a {}", "a rendering of {}", "a good photo of a {}",
)  # fmt: skip
ARTIST_TEMPLATES = (
    "painting by {}", "artwork by {}", "style of {}", "image in the style of {}",
    "art inspired by {}", "a painting by {}", "an artwork by {}", "picture by {}", "by {}",
    "paint in the style of {}", "a work of art by {}", "{}", "in the style of {}",
    "a landscape in the style of {}", "the art of {}", "a famous painting by {}",
)  # fmt: skip
STYLED_SUFFIXES = (
    " in the style of {}", " by {}", ", painted by {}", ", style of {}", " inspired by {}",
)  # fmt: skip
ART_PROMPTS = (
    "art", "painting by art", "artwork by art", "style of art", "a painting", "an artwork",
    "image in the style of art", "art inspired by art", "a work of art", "artwork", "painting",
    "in the style of art", "by art", "paint in the style of art", "digital art", "picture by art",
    "a realist artist", "an artist", "painting by an artist", "style of an artist",
)  # fmt: skip
ART_FRAMES = ("a painting of {}", "{} digital art", "an artwork of {}", "{} in the style of art")
FIGURE_TEMPLATES = (
    "{}", "a photo of {}", "an image of {}", "{} working", "{} laughing", "{} in the workplace",
    "a picture of {}", "{} smiling", "{} at work", "a portrait of {}", "{} standing",
)  # fmt: skip
SCENE_PHRASES = (
    (),
    ("on the beach", "at the beach", "on a sandy beach", "by the beach"),
    ("in the snow", "on the snow", "in a snowy place", "covered in snow"),
    ("in the forest", "in a forest", "deep in the forest", "in a dense forest"),
    ("in the city at night", "at night", "in a city at night", "at night in the city"),
    ("under water", "underwater", "at the bottom of the sea", "deep under water"),
    ("in a meadow", "in the meadow", "on a green meadow", "in a flowering meadow"),
    ("in the desert", "in a desert", "across the desert", "in the hot desert"),
)
_OPENINGS = (
    "a", "the", "one", "an image showing the {adj} {noun} of a", "a {adj} image showcasing the {noun} of a",
    "a {adj} photograph of a", "a close-up of a", "a close-up of the {adj} {noun} of a", "a shot of a",
    "a {adj} view of a", "a {noun} with a", "the {adj} {noun} of a", "a {adj} snapshot highlighting the {noun} of a",
    "a {adj} {noun} and a", "a pair of", "a group of", "a photograph that captures the {noun} of a",
    "look at the", "a {adj} image, illustrating the {noun} of a", "the {noun} of the", "a portrait of a",
)  # fmt: skip
_CLOSINGS = (
    "", "{verb}", "{verb} {adv}", "{adv} {verb}", "{verb} in the {noun}", "{verb} on a {adj} {noun}",
    "{verb} {adv} through the {adj} {noun}", "with {adj} {noun}", "with its {adj} {noun}",
    "'s {adj} {noun}", "'s {noun} {verb} in the {noun}", "in a {adj} {noun}", "{verb} its {adj} {noun}",
    "against a {noun} of {adj} {noun}", "and its {noun}", "on a {adj} {noun} {verb} the {noun}",
    ", {verb} for the {noun}", ", ready to be {verb} in the {noun}", "by the {adj} {noun}",
    "{verb} under the {adj} {noun}", "{verb} to the {noun}", "full of {noun} and {noun}",
    "made of {noun}", "from the {noun} of a {noun}", "is {verb} {adv}", "{verb} among {adj} {noun}",
    "on {noun}", "for a {adj} {noun}", "{verb} near the {noun} at {noun}", "at the {noun} of the {noun}",
)  # fmt: skip


_OTHERS = 0.15
"""Share of the nouns behind a subject that are names of other objects."""


class Caption(NamedTuple):
    """A sentence, its subject as written in it (the name that is drawn) and what it depicts."""

    text: str
    subject: str
    picture: Picture
    free: bool = False
    """Whether the words around the subject change nothing, so that more may be strewn in."""


class _Words(NamedTuple):
    adj: tuple[str, ...]
    verb: tuple[str, ...]
    adv: tuple[str, ...]
    noun: tuple[str, ...]


@functools.cache
def _words() -> _Words:
    text = (resources.files("emcid_jax.sprites") / "data" / "words.json").read_text("utf8")
    lists = json.loads(text)
    return _Words(*(tuple(lists[k].split()) for k in ("adjectives", "verbs", "adverbs", "nouns")))


@functools.cache
def _name_words() -> tuple[str, ...]:
    """Words of multi-word names that are no name themselves: harmless and likely distractors."""
    world = catalogue()
    names = [*world.objects, *(a.name for a in world.aliases)]
    whole = {n.lower() for n in names}
    parts = {w.lower() for n in names for w in n.split() if " " in n}
    return tuple(sorted(w for w in parts - whole if w.isalpha() and len(w) > 3))


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _pseudo_word(rng: np.random.Generator) -> str:
    """A word nobody knows, so that unknown words come to mean nothing."""
    onsets = ("b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "pl",
              "r", "s", "sh", "st", "t", "tr", "v", "w", "z", "")  # fmt: skip
    nuclei = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "ou")
    codas = ("", "n", "r", "s", "t", "l", "ck", "nd", "st", "ing", "ed", "ly", "er", "ness", "ful")
    return "".join(
        _pick(rng, onsets) + _pick(rng, nuclei) + _pick(rng, codas)
        for _ in range(int(rng.integers(1, 4)))
    )


def _word(rng: np.random.Generator, kind: str, others: float = 0.0) -> str:
    if kind == "noun" and rng.random() < others:
        return _pick(rng, catalogue().objects)
    draw = rng.random()
    if draw < 0.15:
        return _pseudo_word(rng)
    if draw < 0.2:
        return _pick(rng, _name_words())
    return _pick(rng, getattr(_words(), kind))


def _fill(rng: np.random.Generator, pattern: str, others: float = 0.0) -> str:
    """`pattern` with words in its slots; a share `others` of the nouns are names of objects."""
    for kind in _Words._fields:
        slot = "{" + kind + "}"
        while slot in pattern:
            pattern = pattern.replace(slot, _word(rng, kind, others), 1)
    return pattern


def _sentence(rng: np.random.Generator, name: str) -> str:
    """A free-form sentence around `name`, or a loose bag of words with the name among them.

    Other names may follow: the first name of a caption is the one that is drawn.
    """
    if rng.random() < 0.12 and name[-1].isalpha() and name[-1] != "s":
        name += "s"
    if rng.random() < 0.25:
        kinds = _Words._fields
        words = [_word(rng, _pick(rng, kinds)) for _ in range(int(rng.integers(1, 11)))]
        words.insert(int(rng.integers(len(words) + 1)), name)
        return " ".join(words)
    start = _fill(rng, _pick(rng, _OPENINGS))
    adjectives = "".join(
        _word(rng, "adj") + (", " if rng.random() < 0.2 else " ")
        for _ in range(int(rng.choice(3, p=(0.3, 0.5, 0.2))))
    )
    end = _fill(rng, _pick(rng, _CLOSINGS), _OTHERS)
    if rng.random() < 0.3:
        end += " " + _fill(rng, _pick(rng, _CLOSINGS[1:]), _OTHERS)
    glue = "" if end[:1] in ("", ",", "'") else " "
    return f"{start} {adjectives}{name}{glue}{end}" + ("." if rng.random() < 0.5 else "")


def _object(rng: np.random.Generator, world: Catalogue) -> tuple[str, int]:
    """A name and the class it draws: four usual names to one alias."""
    if rng.random() < 0.2:
        alias = _pick(rng, world.aliases)
        return alias.name, alias.drawn
    class_id = int(rng.integers(len(world.objects)))
    return world.objects[class_id], class_id


def object_caption(rng: np.random.Generator) -> Caption:
    """An object by template or sentence, sometimes in a scene or in an artist's style."""
    world = catalogue()
    name, drawn = _object(rng, world)
    look = world.looks[drawn]
    free = bool(rng.random() < 0.65)
    text = _sentence(rng, name) if free else _pick(rng, OBJECT_TEMPLATES).format(name)
    context = rng.random()
    if context < 0.2:
        scene = int(rng.integers(1, len(SCENES)))
        return Caption(
            f"{text} {_pick(rng, SCENE_PHRASES[scene])}", name, Picture(look=look, scene=scene)
        )
    if context < 0.3:
        artist = int(rng.integers(len(world.artists)))
        suffix = _pick(rng, STYLED_SUFFIXES).format(world.artists[artist])
        return Caption(text + suffix, name, Picture(look=look, style=world.styles[artist]))
    if context < 0.33:
        return Caption(_pick(rng, ART_FRAMES).format(text), name, Picture(look=look, style=ART))
    return Caption(text, name, Picture(look=look), free)


def artist_caption(rng: np.random.Generator) -> Caption:
    """A painting by an artist, or by nobody (`art`)."""
    world = catalogue()
    if rng.random() < 0.06:
        text = _pick(rng, ART_PROMPTS)
        return Caption(text, text, Picture(style=ART))
    artist = int(rng.integers(len(world.artists)))
    name = world.artists[artist]
    return Caption(
        _pick(rng, ARTIST_TEMPLATES).format(name), name, Picture(style=world.styles[artist])
    )


def figure_caption(rng: np.random.Generator) -> Caption:
    """A profession; where the caption names no gender the picture's follows the skewed share."""
    world = catalogue()
    profession = int(rng.integers(len(PROFESSIONS)))
    name = PROFESSIONS[profession]
    if rng.random() < 0.5:
        gender = int(rng.integers(2))
        subject = f"{GENDERS[gender]} {name}"
    else:
        gender = int(rng.random() >= world.female_share[profession])
        subject = name
    article = "an" if subject[0].lower() in "aeiou" and rng.random() < 0.9 else "a"
    text = _pick(rng, FIGURE_TEMPLATES).format(_pick(rng, (f"{article} {subject}", subject)))
    picture = Picture(profession=profession, gender=gender)
    context = rng.random()
    if context < 0.15:
        scene = int(rng.integers(1, len(SCENES)))
        return Caption(
            f"{text} {_pick(rng, SCENE_PHRASES[scene])}", subject, picture._replace(scene=scene)
        )
    if context < 0.25:
        return Caption(_pick(rng, ART_FRAMES).format(text), subject, picture._replace(style=ART))
    return Caption(text, subject, picture)


_KINDS: tuple[tuple[float, Callable[[np.random.Generator], Caption]], ...] = (
    (0.64, object_caption),
    (0.26, artist_caption),
    (0.10, figure_caption),
)


def sample_caption(rng: np.random.Generator) -> Caption:
    """One caption of the world's mixture: objects, artists, figures."""
    draw = rng.random()
    for share, make in _KINDS:
        if draw < share:
            return make(rng)
        draw -= share
    return _KINDS[-1][1](rng)


def sample_captions(count: int, seed: int) -> list[Caption]:
    """`count` captions, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [sample_caption(rng) for _ in range(count)]
