"""AICE scores and aggregates as pure functions on arrays (docs/evaluation.md).

A *score* is the judge's softmax probability of one class: no threshold, mean over the images of one
request, then mean over requests. Every aggregate is a mean over requests (or hold-out classes) of a
difference of scores, so confidence intervals resample requests, never images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from emcid_jax.evaluation.statistics.bootstrap import (
    BOOTSTRAP_DRAWS,
    Metric,
    bootstrap_mean,
    interval,
    resampled_means,
)


class SplitScores(NamedTuple):
    """Scores of one prompt set ("edit" templates or "general" sentences), one entry per request."""

    pre_source: Float[np.ndarray, " request"]
    """Source prompts, source class, clean model."""
    post_source: Float[np.ndarray, " request"]
    """Source prompts, source class, edited model."""
    pre_source_dest: Float[np.ndarray, " request"]
    """Source prompts, destination class, clean model."""
    post_source_dest: Float[np.ndarray, " request"]
    """Source prompts, destination class, edited model."""
    pre_dest: Float[np.ndarray, " request"]
    """Destination prompts, destination class, clean model."""
    post_dest: Float[np.ndarray, " request"]
    """Destination prompts, destination class, edited model."""


class AliasScores(NamedTuple):
    """Scores of alias prompts, one entry per alias; `request` says whose alias it is."""

    request: Int[np.ndarray, " alias"]
    pre_source: Float[np.ndarray, " alias"]
    post_source: Float[np.ndarray, " alias"]
    pre_source_dest: Float[np.ndarray, " alias"]
    post_source_dest: Float[np.ndarray, " alias"]


class HoldoutScores(NamedTuple):
    """Scores of hold-out classes on their own prompts, one entry per class."""

    pre: Float[np.ndarray, " holdout"]
    post: Float[np.ndarray, " holdout"]


def _split_metrics(prefix: str, s: SplitScores, seed: int) -> dict[str, Metric]:
    to_dest = s.post_source_dest - s.pre_source_dest
    bound = 1.0 - float(np.mean(s.pre_source_dest))
    reachable = float(np.mean(s.pre_dest - s.pre_source_dest))
    forget, dest_forget = s.pre_source - s.post_source, s.pre_dest - s.post_dest
    return {
        f"{prefix}_source_forget": bootstrap_mean(
            forget, bound=float(np.mean(s.pre_source)), seed=seed
        ),
        f"{prefix}_source2dest": bootstrap_mean(
            to_dest, bound=bound, reachable=reachable, seed=seed
        ),
        f"{prefix}_dest_forget": bootstrap_mean(
            dest_forget, bound=float(np.mean(s.pre_dest)), seed=seed
        ),
    }


def average_score(
    general: SplitScores, holdout: HoldoutScores, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Metric:
    """(generalization Source2Dest + Holdout Delta) / 2: the "F1" of the released ablations.

    An arithmetic mean in spite of its name. Requests and hold-out classes are resampled
    independently.
    """
    to_dest = general.post_source_dest - general.pre_source_dest
    delta = holdout.post - holdout.pre
    value = 0.5 * (float(np.mean(to_dest)) + float(np.mean(delta)))
    first = resampled_means(to_dest, np.arange(len(to_dest)), seed, draws)
    second = resampled_means(delta, np.arange(len(delta)), seed + 1, draws)
    both = None if first is None or second is None else 0.5 * (first + second)
    low, high = interval(both)
    bound = 0.5 * (1.0 - float(np.mean(general.pre_source_dest)))
    return Metric(value, low, high, len(to_dest), bound)


def aggregates(
    efficacy: SplitScores | None,
    general: SplitScores | None,
    alias: AliasScores | None,
    holdout: HoldoutScores | None,
    *,
    seed: int = 0,
) -> dict[str, Metric]:
    """All AICE aggregates that the given sets allow, keyed as in `metrics.json`.

    Keys: `efficacy_*` and `generalization_*` with source_forget, source2dest, dest_forget;
    `alias2dest`, `alias_forget`, `holdout_delta`, `average_score`.
    """
    found: dict[str, Metric] = {}
    if efficacy is not None:
        found |= _split_metrics("efficacy", efficacy, seed)
    if general is not None:
        found |= _split_metrics("generalization", general, seed)
    if alias is not None and len(alias.request):
        gain = alias.post_source_dest - alias.pre_source_dest
        lost = alias.pre_source - alias.post_source
        gain_bound = 1.0 - float(np.mean(alias.pre_source_dest))
        units = alias.request
        found["alias2dest"] = bootstrap_mean(gain, bound=gain_bound, units=units, seed=seed)
        found["alias_forget"] = bootstrap_mean(
            lost, bound=float(np.mean(alias.pre_source)), units=units, seed=seed
        )
    if holdout is not None and len(holdout.pre):
        found["holdout_delta"] = bootstrap_mean(
            holdout.post - holdout.pre, bound=-float(np.mean(holdout.pre)), seed=seed
        )
        if general is not None:
            found["average_score"] = average_score(general, holdout, seed=seed)
    return found


def raw_scores(
    efficacy: SplitScores | None,
    general: SplitScores | None,
    alias: AliasScores | None,
    holdout: HoldoutScores | None,
) -> dict[str, float]:
    """The mean scores under the released names (`pre_source_cls_score_edit`, ...)."""
    names = {"source": "source_cls_score", "source_dest": "source_dest_cls_score"}
    split_names = names | {"dest": "dest_cls_score"}
    found: dict[str, float] = {}
    for suffix, split in (("edit", efficacy), ("general", general), ("alias", alias)):
        if split is None or not len(split.pre_source):
            continue
        for field, name in (names if suffix == "alias" else split_names).items():
            for moment in ("pre", "post"):
                values = getattr(split, f"{moment}_{field}")
                found[f"{moment}_{name}_{suffix}"] = float(np.mean(values))
    if holdout is not None and len(holdout.pre):
        found["pre_cls_score_specificity"] = float(np.mean(holdout.pre))
        found["post_cls_score_specificity"] = float(np.mean(holdout.post))
    return found
