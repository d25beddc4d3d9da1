"""Edits of the bundled model's objects in text space, and names that overlap: for `overlap`."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.encoder.whole_prompts import end_features
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.evaluation.text_space.nearest_name import nearest
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.sprites.catalogue import catalogue
from studies import solver_table

UNSEEN = "a picture of a {}"
"""Template of judging."""
DESTINATIONS = 250
"""The first so many spare names are destinations."""


class Pair(NamedTuple):
    """Two names that overlap."""

    edited: str
    watched: str


class Study(NamedTuple):
    """The bundled model, and what its names look like to it."""

    pipeline: Pipeline
    moments: SecondMoments
    objects: tuple[str, ...]
    clean: np.ndarray
    """Final features of every object in the unseen template."""
    spare: tuple[str, ...]
    """Objects that share no word with another: destinations, and names to compare with."""

    def edited(self, requests: Sequence[EditRequest], **settings: Any) -> dict[str, Any]:
        """The text encoder's parameters after Stage II with these settings."""
        pipeline, config = self.pipeline, dataclasses.replace(StageTwoConfig(), **settings)
        edit = stage_two.solve(
            pipeline.encoder.model,
            pipeline.params["text_encoder"],
            solver_table.targets(pipeline, requests),
            SourcePrompts(*spans.source_prompts(pipeline.encoder.tokenizer, requests)),
            self.moments,
            config,
            block=solver_table.BLOCK,
            weights=np.array([request.weight for request in requests]),
            protection=preservation.protect(pipeline.encoder, requests, config),
        )
        return stage_two.apply_edit(pipeline.params["text_encoder"], edit)

    def features(self, params: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
        """Final features of names in the unseen template."""
        ids = tokenize(self.pipeline.encoder.tokenizer, [UNSEEN.format(name) for name in names])
        return end_features(self.pipeline.encoder, params, ids)

    def read(self, features: np.ndarray) -> list[str]:
        """The object that each name's features read as."""
        return [self.objects[i] for i in nearest(features, self.clean)]

    def requests(self, sources: Sequence[str], start: int = 0) -> list[EditRequest]:
        """The sources onto destinations, those from `start` on, over and over."""
        dests = [self.spare[(start + i) % DESTINATIONS] for i in range(len(sources))]
        pairs = zip(sources, dests, strict=True)
        return [EditRequest(source, dest, OBJECT_TEMPLATES) for source, dest in pairs]

    def cosines(self, sources: Sequence[str]) -> np.ndarray:
        """How alike keys are: cosines of keys whitened by C, mean over the layers."""
        layers = StageTwoConfig().layers
        asked = predicted_conflicts.kept_requests(sources, OBJECT_TEMPLATES)
        keys = predicted_conflicts.clean_run(self.pipeline.encoder, asked, layers).keys
        found = np.zeros((len(sources), len(sources)))
        for layer in layers:
            white = self.moments.moment(layer).factor.whiten(keys[layer].T).T
            found += predicted_conflicts.cosines(white, white) / len(layers)
        return found


def make_study(pipeline: Pipeline, moments: SecondMoments) -> Study:
    """Everything that does not depend on an edit."""
    objects = catalogue().objects
    ids = tokenize(pipeline.encoder.tokenizer, [UNSEEN.format(name) for name in objects])
    clean = end_features(pipeline.encoder, pipeline.params["text_encoder"], ids)
    words = collections.Counter(word for name in objects for word in name.lower().split())
    alone = [name for name in objects if all(words[word] == 1 for word in name.lower().split())]
    order = np.random.default_rng(0).permutation(len(alone))
    return Study(pipeline, moments, objects, clean, tuple(alone[i] for i in order))


def siblings(objects: Sequence[str]) -> list[Pair]:
    """The first object of every last word with each other one of that word, both of more words."""
    families = collections.defaultdict(list)
    for name in objects:
        if " " in name:
            families[name.lower().split()[-1]].append(name)
    return [Pair(first, other) for first, *others in families.values() for other in others]


def children(objects: Sequence[str], *, ends: bool) -> list[Pair]:
    """Parent and child: a name that ends with another one, or (not `ends`) begins with it."""
    whole = {name.lower(): name for name in objects}
    found = []
    for name in objects:
        words = name.lower().split()
        for cut in range(1, len(words)):
            part = " ".join(words[cut:] if ends else words[:cut])
            if part in whole:
                found.append(Pair(whole[part], name))
    return found


def aliases(names: Sequence[str], count: int) -> dict[bool, list[Pair]]:
    """The first `count` aliases of `names`, one each, that share a word (True) or none."""
    world, found = catalogue(), {True: [], False: []}
    taken = set()
    for alias in world.aliases:
        name = world.objects[alias.class_id]
        if not alias.taught_right or name not in names or name in taken:
            continue
        shares = bool({*alias.name.lower().split()} & {*name.lower().split()})
        if len(found[shares]) < count:
            taken.add(name)
            found[shares].append(Pair(name, alias.name))
    return found


def near(objects: Sequence[str], spare: Sequence[str], count: int) -> list[Pair]:
    """Disjoint pairs from nearly the same to unrelated: plurals, aliases, siblings, strangers."""
    plurals = [Pair(name, name + "s") for name in spare[-count:] if name[-1].isalpha()]
    kinds = [*aliases(objects, count).values(), siblings(objects), plurals]
    strangers = list(map(Pair, spare[-2 * count : -count], spare[-3 * count : -2 * count]))
    taken: set[str] = set()
    found = []
    for kind in (*kinds, strangers):
        free = []
        for pair in kind:
            if len(free) < count and not taken & {*pair}:
                taken |= {*pair}
                free.append(pair)
        found += free
    return found
