"""Captions that begin alike have the same keys up to where they part: each is needed once.

CLIP's attention is causal, so a token's key depends on the tokens up to it and on nothing else. The
start token is shared by all captions, `a photo of a` by many.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def prefix_counts(
    ids: Int[np.ndarray, "caption token"], lengths: Int[np.ndarray, " caption"]
) -> Int[np.ndarray, "caption token"]:
    """How many captions begin with the tokens up to each token; 0 where an earlier place has it.

    `lengths` tokens of every caption count. A sum over all tokens of something that depends on
    their prefix alone is the sum over these places, each times its count.
    """
    order = np.lexsort(ids.T[::-1])
    ids, lengths = ids[order], lengths[order]
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    alike = np.zeros(ids.shape, bool)
    alike[1:] = np.logical_and.accumulate((ids[1:] == ids[:-1]) & valid[:-1], axis=1)
    first = valid & ~alike
    # Down a column, a caption that begins like the one above it belongs to the same prefix.
    group = np.cumsum(first.T) - 1
    counts = np.zeros(ids.shape, np.int64)
    columns = counts.T
    columns[first.T] = np.bincount(group[valid.T.ravel()])
    result = np.empty_like(counts)
    result[order] = counts
    return result
