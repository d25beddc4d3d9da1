"""What later edits leave of earlier ones, when a model is edited in rounds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int


def retention(
    scores: Float[np.ndarray, "round request"], written: Int[np.ndarray, " request"]
) -> Float64[np.ndarray, " round"]:
    """Share of a request's score that is left k rounds after the one that wrote it, for every k.

    Entry k is the mean score k rounds after writing over the mean score right after writing, both
    of the requests that are measured k rounds after (those written at least k rounds before the
    last one); entry 0 is 1. NaN where no request is, or where they scored 0.

    Args:
        scores: each request's score (success in [0, 1]) after every round; what stands before a
            request's own round is not read.
        written: the round that wrote each request, from 0.
    """
    rounds, columns = len(scores), np.arange(len(written))
    left = np.full(rounds, np.nan)
    for k in range(rounds):
        there = written + k < rounds
        first = scores[written[there], columns[there]].sum(dtype=np.float64)
        if first:
            left[k] = scores[written[there] + k, columns[there]].sum(dtype=np.float64) / first
    return left
