"""How much of a clean run causal tracing brings back, over names in templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from emcid_jax.evaluation.statistics.bootstrap import (
    BOOTSTRAP_DRAWS,
    Estimate,
    interval,
    resampled_means,
)
from emcid_jax.evaluation.text_space.nearest_name import nearest

States = Float[np.ndarray, "name template dim"]


class Finals(NamedTuple):
    """Final features of every name in every template, see `causal_tracing.Ends`."""

    end: States
    subject: States


class Recovery(NamedTuple):
    """Means over names; 1 is as in the clean run, 0 (of the first two) as in the corrupted one."""

    end: Estimate
    """1 - |f - clean| / |corrupted - clean| of the features at the end token."""
    subject: Estimate
    """The same at the last subject token."""
    read: Estimate
    """Share whose features at the end token are, of all names' clean ones, nearest its own."""


def recovery(found: Finals, clean: Finals, corrupted: Finals) -> Recovery:
    """What `found`, a corrupted run with something put back, has of the clean run.

    Means over templates, then over names, with 95 % bootstrap intervals over names.
    """
    shares = [recovered(*part).mean(1) for part in zip(found, clean, corrupted, strict=True)]
    return Recovery(*map(_estimate, [*shares, read_right(found.end, clean.end).mean(1)]))


def recovered(
    found: States, clean: States, corrupted: States
) -> Float[np.ndarray, "name template"]:
    """1 - |found - clean| / |corrupted - clean|: negative where it is further off."""
    left, all_of_it = (
        np.linalg.norm(states.astype(np.float64) - clean, axis=-1) for states in (found, corrupted)
    )
    return 1 - left / all_of_it


def read_right(found: States, clean: States) -> Bool[np.ndarray, "name template"]:
    """Whose nearest clean features, of all names in the same template, are its own."""
    columns = [nearest(found[:, i], clean[:, i]) for i in range(found.shape[1])]
    return np.stack(columns, 1) == np.arange(len(found))[:, None]


def whole_windows(blocks: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(first block, size) of every run of that many neighbouring blocks, by size, then upwards."""
    return [(first, size) for size in sizes for first in range(blocks - size + 1)]


def _estimate(values: Float[np.ndarray, " name"]) -> Estimate:
    means = resampled_means(values, np.arange(len(values)), 0, BOOTSTRAP_DRAWS)
    return Estimate(float(values.mean()), *interval(means))
