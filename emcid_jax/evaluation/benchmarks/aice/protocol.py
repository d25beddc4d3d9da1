"""AICE, arbitrary ImageNet concept editing: what to draw and how to score it (docs/evaluation.md).

Four image sets: *edit* (the templates of the edit), *general* (free-form sentences), *alias* (the
same sentences with the source's other names) and *hold-out* (classes nobody edits). Each is drawn
by the clean and by the edited model from the same seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks.aice.scores import (
    AliasScores,
    HoldoutScores,
    SplitScores,
    aggregates,
    raw_scores,
)
from emcid_jax.evaluation.drawing.draw import Draw, Named, drawn_seeds
from emcid_jax.evaluation.judges.labels import LabelGroup
from emcid_jax.evaluation.statistics.accuracy import erasure, top1
from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.evaluation.statistics.broken_model import Guard, guard

EDIT_PROMPTS = 3
"""Templates scored per request."""
HOLDOUT_PROMPTS = 3
"""Free-form prompts scored per hold-out class."""

Scores = Mapping[Draw, Float[np.ndarray, " label"]]


class Alias(NamedTuple):
    """Another name of a request's source, drawn on the general sentences."""

    name: str
    draws: tuple[Draw, ...]


@dataclasses.dataclass(frozen=True)
class ScoredRequest:
    """One edit request resolved to class ids and images."""

    index: int
    """Position among the run's requests."""
    source: str
    dest: str
    source_id: int
    dest_id: int
    edit_source: tuple[Draw, ...]
    edit_dest: tuple[Draw, ...]
    general_source: tuple[Draw, ...]
    """Empty if the request has no free-form sentences."""
    general_dest: tuple[Draw, ...]
    aliases: tuple[Alias, ...]


@dataclasses.dataclass(frozen=True)
class AicePlan:
    """Everything AICE draws, and the requests it cannot score with the reason."""

    requests: tuple[ScoredRequest, ...]
    holdout: tuple[Named, ...]
    """Classes that no request edits."""
    skipped: tuple[str, ...] = ()

    def draws(self) -> list[Draw]:
        """Every distinct image of one model, requests first, in a fixed order."""
        every = [
            draw
            for one in self.requests
            for part in (
                one.edit_source,
                one.edit_dest,
                one.general_source,
                one.general_dest,
                *(alias.draws for alias in one.aliases),
            )
            for draw in part
        ]
        every += [draw for one in self.holdout for draw in one.draws]
        return list(dict.fromkeys(every))


def plan_requests(
    requests: Sequence[EditRequest],
    labels: LabelGroup,
    sentences: Sequence[str],
    *,
    prompts_per_request: int = 0,
    aliases: bool = True,
) -> tuple[tuple[ScoredRequest, ...], tuple[str, ...]]:
    """Resolve requests to class ids and images; the second result names those left out and why.

    Args:
        requests: the run's edit requests.
        labels: the judge's object labels; ids missing from a request are looked up by name.
        sentences: free-form templates for requests that bring no `validation_templates`.
        prompts_per_request: at most so many images per set; 0 means all.
        aliases: whether to draw the alias set.
    """
    scored, skipped = [], []
    for index, request in enumerate(requests):
        found = _resolve(index, request, labels)
        if isinstance(found, str):
            skipped.append(found)
            continue
        source, dest, source_id, dest_id = found
        general = _slotted(request, request.validation_templates or tuple(sentences))
        edit = _slotted(request, request.templates)[:EDIT_PROMPTS]
        if prompts_per_request:
            edit, general = edit[:prompts_per_request], general[:prompts_per_request]
        others = _other_names(labels.labels[source_id], source, dest) if aliases else ()
        scored.append(
            ScoredRequest(
                index,
                source,
                dest,
                source_id,
                dest_id,
                _fill(edit, source),
                _fill(edit, dest),
                _fill(general, source),
                _fill(general, dest),
                tuple(Alias(name, _fill(general, name)) for name in others if general),
            )
        )
    return tuple(scored), tuple(skipped)


def _resolve(
    index: int, request: EditRequest, labels: LabelGroup
) -> tuple[str, str, int, int] | str:
    """Source, destination and their class ids, or why AICE cannot score the request."""
    where = f"request {index + 1} ({request.source!r}): "
    if not isinstance(request.dest, str):
        return where + "several destinations; AICE compares one source with one destination"
    ids = []
    for field, name, given in (
        ("source", request.source, request.source_id),
        ("destination", request.dest, request.dest_id),
    ):
        found = labels.find(name) if given is None else given
        if found is None:
            return where + f"the judge knows no class called {name!r} ({field})"
        if not 0 <= found < len(labels.labels):
            return where + f"{field} id {found} is outside the judge's {len(labels.labels)} classes"
        ids.append(found)
    if ids[0] == ids[1]:
        return where + "source and destination are one class for the judge"
    return request.source, request.dest, ids[0], ids[1]


def _slotted(request: EditRequest, templates: Sequence[str]) -> list[Draw]:
    """Templates with one `{}` and their seeds.

    A literal sentence gets its slot where it names the source; one that does not is left out.
    Seeds are the request's own, continued from its name and seed when there are too few.
    """
    own = list(request.seeds)
    seeds = own + drawn_seeds(request.source, request.seed, len(templates))[len(own) :]
    slotted, source = [], request.source
    for template, seed in zip(templates, seeds, strict=False):
        at = template.casefold().find(source.casefold())
        if "{}" in template:
            slotted.append(Draw(template, seed))
        elif at >= 0:
            slotted.append(Draw(template[:at] + "{}" + template[at + len(source) :], seed))
    return slotted


def _fill(slotted: Sequence[Draw], name: str) -> tuple[Draw, ...]:
    return tuple(Draw(draw.prompt.replace("{}", name), draw.seed) for draw in slotted)


def _other_names(names: Sequence[str], source: str, dest: str) -> tuple[str, ...]:
    used = {normalised(source), normalised(dest)}
    return tuple(n for n in dict.fromkeys(names) if normalised(n) not in used)


class RequestRecord(NamedTuple):
    """Scores of one request: six numbers per set, see `SplitScores`."""

    index: int
    source: str
    dest: str
    source_id: int
    dest_id: int
    edit: dict[str, float]
    general: dict[str, float] | None
    aliases: dict[str, dict[str, float]]


class HoldoutRecord(NamedTuple):
    """Scores of one hold-out class."""

    name: str
    class_id: int
    pre: float
    post: float


@dataclasses.dataclass(frozen=True)
class AiceResult:
    """Aggregates and the records they come from."""

    metrics: dict[str, Metric]
    raw: dict[str, float]
    records: tuple[RequestRecord, ...]
    holdout: tuple[HoldoutRecord, ...]
    skipped: tuple[str, ...]
    images: int
    """Distinct images drawn per model."""
    accuracy: dict[str, Metric] = dataclasses.field(default_factory=dict)
    """Acc_e, Acc_s, Acc_g and their harmonic means, clean (`pre_...`) and edited model."""
    guard: Guard | None = None
    """Whether the edited model still draws; None without both requests and hold-out classes."""


def score_plan(plan: AicePlan, pre: Scores, post: Scores, *, seed: int = 0) -> AiceResult:
    """Score every set of the plan from the images' class probabilities and aggregate.

    Args:
        pre, post: probabilities over object classes per draw, clean and edited model.
        seed: of the bootstrap.
    """
    records = tuple(_record(one, pre, post) for one in plan.requests)
    holdout = tuple(
        HoldoutRecord(
            one.name,
            one.label,
            _mean(pre, one.draws, one.label),
            _mean(post, one.draws, one.label),
        )
        for one in plan.holdout
    )
    edit = _split([r.edit for r in records])
    general = _split([r.general for r in records if r.general is not None])
    alias = _alias(records)
    held = HoldoutScores(
        np.array([r.pre for r in holdout], np.float64),
        np.array([r.post for r in holdout], np.float64),
    )
    return AiceResult(
        aggregates(edit, general, alias, held, seed=seed),
        raw_scores(edit, general, alias, held),
        records,
        holdout,
        plan.skipped,
        len(plan.draws()),
        {f"pre_{name}": found for name, found in _accuracy(plan, pre, seed).items()}
        | _accuracy(plan, post, seed),
        _guard(plan, pre, post),
    )


def _accuracy(plan: AicePlan, scores: Scores, seed: int) -> dict[str, Metric]:
    """Erasure as `accuracy` defines it; a source's own prompts are templates and sentences."""

    def share(draws: Sequence[Draw], class_id: int) -> float:
        found = np.stack([scores[draw] for draw in draws])
        return float(top1(found, np.full(len(draws), class_id)).mean())

    aliases = [(one, alias) for one in plan.requests for alias in one.aliases]
    return erasure(
        np.array([share(_own(one), one.source_id) for one in plan.requests], np.float64),
        np.array([share(one.draws, one.label) for one in plan.holdout], np.float64),
        np.array([share(alias.draws, one.source_id) for one, alias in aliases], np.float64),
        np.array([one.index for one, _ in aliases], np.int64),
        seed=seed,
    )


def _guard(plan: AicePlan, pre: Scores, post: Scores) -> Guard | None:
    if not plan.requests or not plan.holdout:
        return None
    held = [draw for one in plan.holdout for draw in one.draws]
    own = [(draw, one.source_id) for one in plan.requests for draw in _own(one)]
    return guard(
        np.stack([pre[draw] for draw in held]),
        np.stack([post[draw] for draw in held]),
        np.stack([post[draw] for draw, _ in own]),
        np.array([class_id for _, class_id in own]),
    )


def _own(one: ScoredRequest) -> tuple[Draw, ...]:
    return one.edit_source + one.general_source


def as_json(result: AiceResult) -> dict[str, Any]:
    """The entries of `metrics.json` that an evaluation adds; JSON values only."""
    return {
        "aice": {name: metric._asdict() for name, metric in result.metrics.items()},
        "accuracy": {name: metric._asdict() for name, metric in result.accuracy.items()},
        "guard": result.guard
        and result.guard._asdict() | {"sources": result.guard.sources._asdict()},
        "scores": result.raw,
        "images": result.images,
        "skipped": list(result.skipped),
        "records": [record._asdict() for record in result.records],
        "holdout": [record._asdict() for record in result.holdout],
    }


def _mean(scores: Scores, draws: Sequence[Draw], class_id: int) -> float:
    return float(np.mean([scores[draw][class_id] for draw in draws], dtype=np.float64))


def _record(one: ScoredRequest, pre: Scores, post: Scores) -> RequestRecord:
    def split(source: Sequence[Draw], dest: Sequence[Draw]) -> dict[str, float]:
        found = {}
        for name, draws, class_id in (
            ("source", source, one.source_id),
            ("source_dest", source, one.dest_id),
            ("dest", dest, one.dest_id),
        ):
            if draws:
                found[f"pre_{name}"] = _mean(pre, draws, class_id)
                found[f"post_{name}"] = _mean(post, draws, class_id)
        return found

    return RequestRecord(
        one.index,
        one.source,
        one.dest,
        one.source_id,
        one.dest_id,
        split(one.edit_source, one.edit_dest),
        split(one.general_source, one.general_dest) if one.general_source else None,
        {alias.name: split(alias.draws, ()) for alias in one.aliases},
    )


def _split(records: Sequence[Mapping[str, float]]) -> SplitScores | None:
    if not records:
        return None
    return SplitScores(
        **{f: np.array([r[f] for r in records], np.float64) for f in SplitScores._fields}
    )


def _alias(records: Sequence[RequestRecord]) -> AliasScores:
    rows = [(r.index, scores) for r in records for scores in r.aliases.values()]
    columns = {
        field: np.array([scores[field] for _, scores in rows], np.float64)
        for field in AliasScores._fields[1:]
    }
    return AliasScores(np.array([index for index, _ in rows], np.int64), **columns)
