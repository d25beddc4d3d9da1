"""One edit judged, whatever its requests ask: each by its own benchmark, all by the same summary.

AICE scores `update` requests, `erase` those about artists and `rectify` wrong names, all from one
drawing. What they share goes into `summary`: whether the source is erased, whether the destination
is drawn instead, and whether everything else is as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import erase, rectify, registry
from emcid_jax.evaluation.benchmarks.aice import protocol as aice
from emcid_jax.evaluation.benchmarks.erase import ARTIST, Artist, ErasePlan
from emcid_jax.evaluation.benchmarks.untouched_names import UntouchedNames
from emcid_jax.evaluation.drawing.before_after import (
    Models,
    Reading,
    Readings,
    draws_of,
    is_top,
    probability,
    read_both,
)
from emcid_jax.evaluation.drawing.both import SIDES
from emcid_jax.evaluation.drawing.draw import Draw, Named
from emcid_jax.evaluation.drawing.kept_pictures import picture_files, slug
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics import broken_model
from emcid_jax.evaluation.statistics.summary import Done, Kept, stayed, summarise
from emcid_jax.evaluation.text_space.measure import names_any

BENCHMARK = "comparison"
"""Folder of stored probabilities and pictures."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A request, what the judge calls its names, and its images."""

    request: EditRequest
    group: str
    """Label group of source and destination."""
    source: int | None
    """Label of the source; None for a wrong name, whose look is erased where the right one is."""
    dest: int | None
    """Label of the destination; None if the judge has none."""
    templates: tuple[Draw, ...]
    """The source on the edit's own templates."""
    sentences: tuple[Draw, ...]
    """The source in sentences that the edit never saw."""
    own: tuple[Draw, ...]
    """The destination in the same sentences; empty if it has no name of its own."""


class Plan(NamedTuple):
    """Everything one edit is judged by."""

    judged: tuple[Judged, ...]
    untouched: UntouchedNames
    apart: tuple[Named, ...]
    """The held-out names, with those of their images whose prompts name no source of the edit."""
    aice: aice.AicePlan
    erase: ErasePlan
    rectify: tuple[rectify.Name, ...]

    def draws(self) -> list[Draw]:
        """Every distinct image of one model."""
        every = [draw for one in self.judged for part in _own_draws(one) for draw in part]
        every += self.aice.draws() + self.erase.draws()
        every += [draw for name in self.rectify for part in name.draws for draw in part]
        every += [draw for name in self.untouched.protected for draw in name.draws]
        return list(dict.fromkeys(every))


def _own_draws(one: Judged) -> tuple[tuple[Draw, ...], ...]:
    return one.templates, one.sentences, one.own


def make_plan(
    requests: Sequence[EditRequest],
    untouched: UntouchedNames,
    groups: Mapping[str, LabelGroup],
    config: EvaluationConfig,
    sources: Sequence[str],
) -> Plan:
    """What is drawn for these requests, none of them `debias`, and the untouched names.

    `sources` are those of the whole edit, of which the requests may be a part. Requests that no
    benchmark can score are left out; `aice.skipped` says why.
    """
    split = registry.split(requests, groups)
    objects, artists = groups[OBJECT], groups.get(ARTIST)
    most = config.prompts_per_request
    scored, skipped = aice.plan_requests(
        split[registry.AICE], objects, SENTENCES, prompts_per_request=most, aliases=config.aliases
    )
    classes, kept = (
        tuple(one for one in untouched.held_out if one.group == group) for group in (OBJECT, ARTIST)
    )
    erased: tuple[Artist, ...] = ()
    if artists is not None:
        # No objects in the artists' style: what becomes of these is the task's own question.
        erased = erase.make_plan(split["erase"], artists, None, config).erased
    names = rectify.make_plan(split["rectify"], objects, config)
    judged = [
        *(_updated(split[registry.AICE][one.index], one) for one in scored),
        *(_erased(*pair, most) for pair in zip(split["erase"], erased, strict=True)),
        *(_rectified(*pair) for pair in zip(split["rectify"], names, strict=True)),
    ]
    order = {id(request): place for place, request in enumerate(requests)}
    judged.sort(key=lambda one: order[id(one.request)])
    plan = aice.AicePlan(scored, classes, skipped)
    apart = _apart(untouched.held_out, sources)
    return Plan(tuple(judged), untouched, apart, plan, ErasePlan(erased, kept), names)


def _apart(names: Sequence[Named], sources: Sequence[str]) -> tuple[Named, ...]:
    """The names with the images whose prompts hold no source as words; without one: left out."""
    prompts = list(dict.fromkeys(draw.prompt for name in names for draw in name.draws))
    named = dict(zip(prompts, names_any(prompts, sources), strict=True))
    left = (
        name._replace(draws=tuple(draw for draw in name.draws if not named[draw.prompt]))
        for name in names
    )
    return tuple(name for name in left if name.draws)


def _updated(request: EditRequest, one: aice.ScoredRequest) -> Judged:
    draws = one.edit_source, one.general_source, one.general_dest or one.edit_dest
    return Judged(request, OBJECT, one.source_id, one.dest_id, *draws)


def _erased(request: EditRequest, one: Artist, most: int) -> Judged:
    templates = draws_of(request.source, request.templates[: most or None], (), request.seed)
    return Judged(request, ARTIST, one.label, one.dest, templates, one.draws, ())


def _rectified(request: EditRequest, one: rectify.Name) -> Judged:
    return Judged(request, OBJECT, None, one.class_id, *one.draws)


def read(
    plan: Plan,
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    edit: str,
    *,
    progress: bool = True,
) -> Readings:
    """Draws what is not stored in `workdir` yet, and gives what the judge reads in it.

    The clean model's images are shared by all edits of one workdir; pictures of the edit go to
    `images/comparison/after-EDIT/`, see `picture_names`.
    """
    groups = [group for group in (ARTIST, OBJECT) if group in models.judge.groups]
    root, names = workdir / "images" / BENCHMARK, picture_names(plan)
    folders = dict(zip(SIDES, (root / "before", root / f"after-{edit}"), strict=True))
    return read_both(
        plan.draws(),
        groups,
        models,
        config,
        workdir,
        BENCHMARK,
        pictures={side: picture_files(folder, names) for side, folder in folders.items()},
        batch=config.batch,
        progress=progress,
    )


def picture_names(plan: Plan) -> dict[Draw, str]:
    """Kept pictures: one sentence per request and its destination, and the held-out names."""
    shown = [(one.sentences or one.templates)[0] for one in plan.judged]
    shown += [one.own[0] for one in plan.judged if one.own]
    shown += [name.draws[0] for name in plan.untouched.held_out]
    return {draw: f"{draw.key[:8]}-{slug(draw.prompt)}" for draw in shown}


def score(plan: Plan, readings: Readings) -> dict[str, Any]:
    """Summaries of the clean and the edited model, benchmarks and records; JSON values only.

    `clean` and `edited` are `summary.summarise`'s figures and `stayed_unnamed`, which is `stayed`
    over the images whose prompts name no source of the edit. `guard` is the verdict on each label
    group, `acc_told` the share right of protected names; `aice`, `erase` and `rectify` are those
    benchmarks' aggregates, `records` one entry per judged request, `held` one per held-out name.
    """
    held, protected = plan.untouched.held_out, plan.untouched.protected
    right, apart = (
        {side: _right(names, readings._asdict()[side]) for side in SIDES}
        for names in (held, plan.apart)
    )
    figures = {
        name: {
            key: figure._asdict()
            for key, figure in summarise(
                done(plan.judged, readings._asdict()[side]), Kept(right["before"], right[side])
            ).items()
        }
        for name, side in (("clean", "before"), ("edited", "after"))
    }
    for name, side in (("clean", "before"), ("edited", "after")):
        if plan.apart:
            shares = Kept(apart["before"], apart[side])
            figures[name]["stayed_unnamed"] = stayed(shares)._asdict()
        for group in dict.fromkeys(one.group for one in held):
            mine = np.array([one.group == group for one in held])
            figures[name][f"acc_s_{group}"] = {"value": float(right[side][mine].mean())}
        if protected:
            share = float(_right(protected, readings._asdict()[side]).mean())
            figures[name]["acc_told"] = {"value": share}
    objects = [{draw: one[OBJECT] for draw, one in side.items()} for side in readings]
    found = aice.as_json(aice.score_plan(plan.aice, *objects))
    others: dict[str, Any] = {}
    if plan.erase.erased:
        others["erase"] = erase.score_plan(plan.erase, readings)["metrics"]
    if plan.rectify:
        others["rectify"] = rectify.score(plan.rectify, readings)["metrics"]
    return {
        **figures,
        "guard": verdict(held, readings),
        "aice": {name: found[name] for name in ("aice", "accuracy")},
        **others,
        "images": len(plan.draws()),
        "skipped": found["skipped"],
        "records": _records(plan, readings),
        "held": [
            {"name": one.name, "group": one.group, "before": float(a), "after": float(b)}
            for one, a, b in zip(held, right["before"], right["after"], strict=True)
        ],
    }


def done(judged: Sequence[Judged], side: Mapping[Draw, Reading]) -> Done:
    """What one model does on the judged requests' prompts."""

    def share(one: Judged, draws: Sequence[Draw], label: int | None) -> float:
        if not draws or label is None:
            return float("nan")
        return float(is_top(side, draws, one.group, label).mean())

    def erased(one: Judged, draws: Sequence[Draw]) -> float:
        if one.source is None:
            return share(one, draws, one.dest)
        return 1.0 - share(one, draws, one.source)

    figures: dict[str, Callable[[Judged], float]] = {
        "gone": lambda one: erased(one, one.templates),
        "shown": lambda one: share(one, one.templates, one.dest),
        "gone_unseen": lambda one: erased(one, one.sentences),
        "shown_unseen": lambda one: share(one, one.sentences, one.dest),
        "own": lambda one: share(one, one.own, one.dest),
    }
    return Done(
        **{
            name: np.array([figure(one) for one in judged], np.float64)
            for name, figure in figures.items()
        }
    )


def verdict(held: Sequence[Named], readings: Readings) -> dict[str, Any]:
    """Whether the edited model still draws: `intact` if it does in every label group."""
    found: dict[str, Any] = {}
    for group in dict.fromkeys(one.group for one in held):
        draws = [draw for one in held if one.group == group for draw in one.draws]
        pair = (np.stack([side[draw][group] for draw in draws]) for side in readings)
        found[group] = broken_model.drawing(*pair)._asdict()
    return found | {"intact": all(one["intact"] for one in found.values())}


def _right(names: Sequence[Named], side: Mapping[Draw, Reading]) -> np.ndarray:
    """Share of each name's pictures that show it."""
    shares = [is_top(side, one.draws, one.group, one.label).mean() for one in names]
    return np.array(shares, np.float64)


def _records(plan: Plan, readings: Readings) -> list[dict[str, Any]]:
    """Per judged request its shares after the edit, and its score in unseen sentences.

    `score` orders pictures: P(destination), or 1 - P(source) where the judge knows no destination,
    after minus before.
    """
    after, names = done(plan.judged, readings.after), picture_names(plan)
    return [
        {
            "source": one.request.source,
            "dest": one.request.dests[0],
            "task": one.request.task,
            "score": _gain(one, readings),
            "prompt": shown.prompt,
            "picture": f"{names[shown]}.png",
            "wanted": f"{names[one.own[0]]}.png" if one.own else None,
        }
        | dict(_known(after, i))
        for i, one in enumerate(plan.judged)
        for shown in ((one.sentences or one.templates)[0],)
    ]


def _known(shares: Done, row: int) -> Iterator[tuple[str, float]]:
    for name, values in shares._asdict().items():
        if not np.isnan(values[row]):
            yield name, float(values[row])


def _gain(one: Judged, readings: Readings) -> float:
    draws, sign, label = one.sentences or one.templates, 1.0, one.dest
    if label is None:
        sign, label = -1.0, one.source
    assert label is not None
    before, after = (probability(side, draws, one.group, label).mean() for side in readings)
    return float(sign * (after - before))
