"""One edit in a few figures, whatever its requests ask: edit success, damage, and both in one.

The source is erased (`gone`) on a picture if it is no longer the judge's first choice. The edit
succeeds (`shown`) if the destination is. A name that nobody edits is right if it is the first
choice. Requests and names are resampled for intervals, never pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.evaluation.statistics.accuracy import harmonic_mean
from emcid_jax.evaluation.statistics.bootstrap import (
    BOOTSTRAP_DRAWS,
    Estimate,
    interval,
    resampled_means,
)


class Done(NamedTuple):
    """Shares of pictures, one entry per judged request; NaN where there is none to judge."""

    gone: Float[np.ndarray, " request"]
    """Source erased, on the edit's own templates."""
    shown: Float[np.ndarray, " request"]
    """Edit success, on the same."""
    gone_unseen: Float[np.ndarray, " request"]
    """In sentences that the edit never saw."""
    shown_unseen: Float[np.ndarray, " request"]
    own: Float[np.ndarray, " request"]
    """Destination fidelity: the destination is still drawn under its own name."""


class Kept(NamedTuple):
    """Shares of pictures that are right, one entry per name that no request touches."""

    before: Float[np.ndarray, " name"]
    """Clean model."""
    after: Float[np.ndarray, " name"]


def summarise(
    done: Done, kept: Kept, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> dict[str, Estimate]:
    """Every figure with its 95 % interval, as far as there is anything to average.

    * `gone`, `shown`, `gone_unseen`, `shown_unseen`, `own`: means over requests; `gone` is
      1 - Acc_e of MACE;
    * `acc_s`: share right of names that nobody edits; `stayed`: that over the clean model's, at
      most 1;
    * `h`, `h_unseen`: harmonic mean of `gone` (in unseen sentences) and `acc_s`, MACE's H_c;
    * `h_dest`, `h_dest_unseen`: of `shown` (in unseen sentences) and `stayed`: a model that forgets
      everything earns nothing.
    """
    found: dict[str, Estimate] = {}
    means: dict[str, np.ndarray | None] = {}
    for name, every in done._asdict().items():
        if len(values := every[~np.isnan(every)]):
            means[name] = _resampled(values, seed, draws)
            found[name] = Estimate(float(np.mean(values)), *interval(means[name]))
    if not len(kept.after):
        return found
    after, before = (_resampled(part, seed + 1, draws) for part in (kept.after, kept.before))
    means["acc_s"] = after
    found["acc_s"] = Estimate(float(np.mean(kept.after)), *interval(after))
    found["stayed"], means["stayed"] = _remaining(kept, after, before)
    for name, first, second in (
        ("h", "gone", "acc_s"),
        ("h_unseen", "gone_unseen", "acc_s"),
        ("h_dest", "shown", "stayed"),
        ("h_dest_unseen", "shown_unseen", "stayed"),
    ):
        if first in found:
            value = harmonic_mean([found[first].value, found[second].value])
            found[name] = Estimate(value, *interval(_harmonic([means[first], means[second]])))
    return found


def stayed(kept: Kept, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """Share right of at least one name that nobody edits over the clean model's, at most 1."""
    means = (_resampled(part, seed + 1, draws) for part in (kept.after, kept.before))
    return _remaining(kept, *means)[0]


def _remaining(
    kept: Kept, after: np.ndarray | None, before: np.ndarray | None
) -> tuple[Estimate, np.ndarray | None]:
    """`stayed` and its resampled means, from those of its two parts."""
    share = _over(np.array([np.mean(kept.after)]), np.array([np.mean(kept.before)]))
    means = None if after is None or before is None else _over(after, before)
    return Estimate(float(share[0]), *interval(means)), means


def _resampled(values: np.ndarray, seed: int, draws: int) -> np.ndarray | None:
    return resampled_means(values, np.arange(len(values)), seed, draws)


def _over(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The remaining share, at most 1; 1 where there was nothing."""
    ratio = np.divide(after, before, out=np.ones_like(before), where=before > 0)
    return np.minimum(ratio, 1.0)


def _harmonic(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Draw by draw."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return np.array([harmonic_mean(row) for row in np.stack(known, axis=1).tolist()])
