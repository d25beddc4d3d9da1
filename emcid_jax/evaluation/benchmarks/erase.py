"""Erased artists: is the style erased, does the picture stay, are the other artists unharmed?

Three image sets, each drawn by the clean and by the edited model from the same seeds: *erased*
(paintings by the artists of the requests), *styled* (objects in their style) and *kept* (artists
that nobody erases). A judge with the label group `artist` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.before_after import (
    Models,
    Readings,
    draws_of,
    label_means,
    probability,
    read_both,
)
from emcid_jax.evaluation.drawing.draw import Draw, Named
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.bootstrap import Metric, bootstrap_mean
from emcid_jax.evaluation.statistics.evenly import evenly

ARTIST = "artist"
SENTENCES = (
    "a famous painting by {}",
    "image in the style of {}",
    "art inspired by {}",
    "a landscape in the style of {}",
    "the art of {}",
)
"""For artists whose requests bring no prompts; none is a template of the published edits."""
STYLED = "{} in the style of {}"
KEPT = 100
"""Artists kept and drawn when `evaluation.holdout` asks for all: as many as published."""


@dataclasses.dataclass(frozen=True)
class Artist:
    """An artist of a request and the images drawn of them."""

    name: str
    label: int
    """Index in the judge's group `artist`."""
    draws: tuple[Draw, ...]
    dest: int | None
    """Label of the destination; None if the judge has none."""
    styled: tuple[tuple[Draw, int], ...]
    """Objects in the artist's style: the image and the object's label."""


class ErasePlan(NamedTuple):
    """Everything the benchmark draws."""

    erased: tuple[Artist, ...]
    kept: tuple[Named, ...]

    def draws(self) -> list[Draw]:
        """Every image of one model, in a fixed order."""
        own = [draw for artist in (*self.erased, *self.kept) for draw in artist.draws]
        return own + [draw for artist in self.erased for draw, _ in artist.styled]


class StyleScores(NamedTuple):
    """Means over an artist's images, one entry per artist."""

    pre: Float[np.ndarray, " artist"]
    """P(the artist's own style), clean model."""
    post: Float[np.ndarray, " artist"]
    """The same, edited model."""
    pre_top: Float[np.ndarray, " artist"]
    """Share of images whose most probable style is the artist's own, clean model."""
    post_top: Float[np.ndarray, " artist"]


def takes(request: EditRequest, groups: Mapping[str, LabelGroup]) -> bool:
    """Requests to erase an artist that the judge knows."""
    artists = groups.get(ARTIST)
    return (
        request.task == "erase" and artists is not None and artists.find(request.source) is not None
    )


def make_plan(
    requests: Sequence[EditRequest],
    artists: LabelGroup,
    objects: LabelGroup | None,
    config: EvaluationConfig,
) -> ErasePlan:
    """What is drawn for `erase` requests whose sources the judge knows as artists.

    Kept artists are spread evenly over those that no request names, `config.holdout` of them (0:
    `KEPT`), chosen before anything is drawn.
    """
    erased = []
    for number, request in enumerate(requests):
        label = artists.find(request.source)
        if label is None:
            continue
        templates = _limited(request.validation_templates or SENTENCES, config)
        draws = draws_of(request.source, templates, request.seeds[: len(templates)], request.seed)
        styled = []
        for k in range(len(templates) if objects else 0):
            assert objects is not None
            thing = (7 * (number * len(templates) + k)) % len(objects.labels)
            prompt = STYLED.format(objects.labels[thing][0], request.source)
            styled.append((draws_of("", [prompt], seed=request.seed + k)[0], thing))
        dest = artists.find(request.dests[0])
        erased.append(Artist(request.source, label, draws, dest, tuple(styled)))
    named = {artist.label for artist in erased} | {artist.dest for artist in erased}
    free = [i for i in range(len(artists.labels)) if i not in named]
    templates = _limited(SENTENCES, config)
    kept = [
        Named(name, ARTIST, label, draws_of(name, templates))
        for label in evenly(free, config.holdout or KEPT)
        for name in (artists.labels[label][0],)
    ]
    return ErasePlan(tuple(erased), tuple(kept))


def evaluate(
    requests: Sequence[EditRequest],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Draws, judges and scores; the entry `erase` of `metrics.json`, JSON values only."""
    groups = models.judge.groups
    objects = groups.get(OBJECT)
    plan = make_plan(requests, groups[ARTIST], objects, config)
    shown = [artist.draws[0] for artist in (*plan.erased, *plan.kept[:20])]
    shown += [artist.styled[0][0] for artist in plan.erased if artist.styled]
    readings = read_both(
        plan.draws(),
        [ARTIST, OBJECT] if objects else [ARTIST],
        models,
        config,
        workdir,
        "erase",
        shown=shown,
        progress=progress,
    )
    return score_plan(plan, readings)


def score_plan(plan: ErasePlan, readings: Readings) -> dict[str, Any]:
    """Aggregates with intervals over artists, and the scores of every artist."""
    erased = _style_scores(plan.erased, readings)
    kept = _style_scores(plan.kept, readings)
    metrics = aggregates(erased, kept) | _to_dest(plan, readings) | _styled(plan, readings)
    return {
        "metrics": {name: metric._asdict() for name, metric in metrics.items()},
        "images": len(dict.fromkeys(plan.draws())),
        "records": _records(plan.erased, erased),
        "kept": _records(plan.kept, kept),
    }


def aggregates(erased: StyleScores, kept: StyleScores) -> dict[str, Metric]:
    """Style Forget, what is left, and what became of the kept artists.

    * `style_forget`: P(own style) before - after, erased artists; `style_left`: share of their
      images still read as the artist's own, after;
    * `kept_delta`: P(own style) after - before, kept artists; `kept_right`: share read right after,
      bound: before.
    """
    found = {}
    if len(erased.pre):
        bound = float(np.mean(erased.pre))
        found["style_forget"] = bootstrap_mean(erased.pre - erased.post, bound=bound)
        found["style_left"] = bootstrap_mean(erased.post_top, bound=0.0)
    if len(kept.pre):
        bound = -float(np.mean(kept.pre))
        found["kept_delta"] = bootstrap_mean(kept.post - kept.pre, bound=bound)
        found["kept_right"] = bootstrap_mean(kept.post_top, bound=float(np.mean(kept.pre_top)))
    return found


def _to_dest(plan: ErasePlan, readings: Readings) -> dict[str, Metric]:
    """P(destination's style) after - before on paintings by the erased artists."""
    known = [(artist, artist.dest) for artist in plan.erased if artist.dest is not None]
    if not known:
        return {}
    before, after = (
        np.array([probability(side, one.draws, ARTIST, dest).mean() for one, dest in known])
        for side in readings
    )
    bound = 1.0 - float(before.mean())
    return {"style2dest": bootstrap_mean(after - before, bound=bound)}


def _styled(plan: ErasePlan, readings: Readings) -> dict[str, Metric]:
    """Objects in an erased artist's style: the style's loss, and the object's change."""
    styled = [artist for artist in plan.erased if artist.styled]
    if not styled:
        return {}
    style, thing = [], []
    for side in readings:
        style.append([])
        thing.append([])
        for one in styled:
            draws = [draw for draw, _ in one.styled]
            style[-1].append(probability(side, draws, ARTIST, one.label).mean())
            thing[-1].append(np.mean([side[draw][OBJECT][i] for draw, i in one.styled]))
    (style_pre, style_post), (thing_pre, thing_post) = np.array(style), np.array(thing)
    return {
        "styled_forget": bootstrap_mean(style_pre - style_post, bound=float(style_pre.mean())),
        "content_delta": bootstrap_mean(thing_post - thing_pre, bound=-float(thing_pre.mean())),
    }


def _style_scores(artists: Sequence[Artist | Named], readings: Readings) -> StyleScores:
    rows = [(artist.draws, artist.label) for artist in artists]
    return StyleScores(*label_means(readings, rows, ARTIST))


def _records(artists: Sequence[Artist | Named], scores: StyleScores) -> list[dict[str, Any]]:
    return [
        {"artist": artist.name}
        | {field: float(getattr(scores, field)[i]) for field in StyleScores._fields}
        for i, artist in enumerate(artists)
    ]


def _limited(templates: Sequence[str], config: EvaluationConfig) -> tuple[str, ...]:
    return tuple(templates[: config.prompts_per_request or None])
