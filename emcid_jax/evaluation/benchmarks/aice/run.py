"""Run AICE: draw with the clean and the edited model, judge, score, keep a gallery of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks.aice.gallery import (
    HOLDOUT_PICTURES,
    Evaluation,
    Pair,
    Seen,
    shown_draws,
)
from emcid_jax.evaluation.benchmarks.aice.holdout import holdout_from_labels, limited, read_holdout
from emcid_jax.evaluation.benchmarks.aice.protocol import (
    AicePlan,
    Scores,
    plan_requests,
    score_plan,
)
from emcid_jax.evaluation.drawing.batches import judging
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.drawing.both import SIDES, read_by_both
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.drawing.kept_pictures import picture_files, slug
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import even_chunk
from emcid_jax.storage.hashing import fingerprint

FORMAT = 1
"""Raised whenever stored probabilities would come out differently from the same inputs."""


def make_plan(
    requests: Sequence[EditRequest], labels: LabelGroup, config: EvaluationConfig
) -> AicePlan:
    """Requests, aliases and hold-out classes of an evaluation; draws nothing.

    Raises `UserError` if the hold-out file cannot be used.
    """
    scored, skipped = plan_requests(
        requests,
        labels,
        SENTENCES,
        prompts_per_request=config.prompts_per_request,
        aliases=config.aliases,
    )
    if config.holdout_path:
        holdout = read_holdout(Path(config.holdout_path), labels)
    else:
        named = (labels.find(request.source) for request in requests)
        edited = {one.source_id for one in scored} | {i for i in named if i is not None}
        holdout = holdout_from_labels(labels, edited, SENTENCES)
    holdout = limited(holdout, classes=config.holdout, prompts=config.prompts_per_request)
    return AicePlan(scored, holdout, skipped)


def evaluate(
    requests: Sequence[EditRequest],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> Evaluation:
    """Evaluate the edit of the requests; goes on where a killed run stopped.

    Args:
        requests: what was edited, in order.
        models: what draws, and a judge with an `object` label group.
        config: benchmark settings.
        workdir: probabilities go to `evaluation/`, pictures to `images/{before,after}/`.
        progress: bars on stderr.

    Raises `UserError` if the judge knows no objects or the hold-out file cannot be used.
    """
    judge = models.judge
    if OBJECT not in judge.groups:
        raise UserError(f"judge: none of its labels is an object; groups are {list(judge.groups)}")
    labels = judge.groups[OBJECT]
    plan = make_plan(requests, labels, config)
    shown = {one.index: shown_draws(one) for one in plan.requests}
    held = evenly(plan.holdout, HOLDOUT_PICTURES)
    names = {draw: f"{i + 1:04d}-{slug(draw.prompt)}" for i, (draw, _) in shown.items()}
    names |= {one.draws[0]: f"holdout-{one.label:04d}-{slug(one.name)}" for one in held}
    wanted = {draw: f"{i + 1:04d}-wanted-{slug(draw.prompt)}" for i, (_, draw) in shown.items()}
    pictures = {
        "before": picture_files(workdir / "images" / "before", wanted | names),
        "after": picture_files(workdir / "images" / "after", names),
    }
    draws = plan.draws()
    batch = even_chunk(len(draws), config.batch)
    decides = (FORMAT, models.base_hash, judge.fingerprint, config.steps, config.guidance)
    both = read_by_both(
        draws,
        judging(judge, [OBJECT], batch),
        fingerprint(*decides),
        models,
        config,
        workdir,
        "",
        pictures=pictures,
        batch=batch,
        progress=progress,
    )
    scores: dict[str, Scores] = dict(zip(SIDES, both, strict=True))

    def seen(side: str, draw: Draw) -> Seen:
        vector = scores[side][draw]
        top = int(np.argmax(vector))
        return Seen(pictures[side][draw], labels.labels[top][0], float(vector[top]))

    def pair(name: str, draw: Draw, dest: Draw | None = None) -> Pair:
        goal = seen("before", dest) if dest else None
        return Pair(name, *draw, seen("before", draw), seen("after", draw), goal)

    return Evaluation(
        score_plan(plan, scores["before"], scores["after"]),
        {one.index: pair(one.source, *shown[one.index]) for one in plan.requests},
        tuple(pair(one.name, one.draws[0]) for one in held),
    )
