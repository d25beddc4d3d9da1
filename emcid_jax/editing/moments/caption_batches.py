"""Captions in batches of one width, in which everything that begins alike is counted once.

CLIP's attention is causal, so a token's key depends on the tokens up to it and on nothing else:
captions that begin alike have the same keys up to where they part. The start token is shared by
all captions, `a photo of a` by many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from emcid_jax.runtime.parallel import padded_size

# Token widths that captions are padded to are multiples of this: few programs, little padding.
WIDTH_STEP = 4


class CaptionBatch(NamedTuple):
    """Captions of one width, dealt to the devices, and where their distinct prefixes end."""

    ids: Int[np.ndarray, "caption token"]
    places: Int[np.ndarray, " slot"]
    """Caption * width + token, counted within each device's share; 0 where a slot is empty."""
    counts: Int[np.ndarray, " slot"]
    """How often each prefix occurs in the corpus; 0 where a slot is empty."""


def canonical(
    ids: Int[np.ndarray, "caption token"], lengths: Int[np.ndarray, " caption"], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Captions sorted by length, then ids, with padding zeroed and no wider than needed.

    One form for one set of captions, however they were ordered and padded; `most` is the width
    that the model takes.
    """
    width = min(padded_size(int(lengths.max()), WIDTH_STEP), most)
    ids = np.pad(ids[:, :width], ((0, 0), (0, max(width - ids.shape[1], 0))))
    ids = np.where(np.arange(width) < lengths[:, None], ids, 0).astype(np.int32)
    order = np.lexsort((*ids.T[::-1], lengths))
    return ids[order], lengths[order]


def make_batches(
    ids: Int[np.ndarray, "caption token"],
    lengths: Int[np.ndarray, " caption"],
    batch: int,
    devices: int,
) -> list[CaptionBatch]:
    """All captions in batches of `batch`, narrow ones first.

    The captions of a width are dealt like cards, so that batches and devices have about equally
    many distinct prefixes; all batches of a width have as many slots, hence one program.
    """
    occurrences = prefix_counts(ids, lengths)
    widths = np.minimum(-(-lengths // WIDTH_STEP) * WIDTH_STEP, ids.shape[1])
    batches = []
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        hands = -(-len(rows) // batch) * devices
        shares = [
            (ids[rows[i::hands], :width], occurrences[rows[i::hands], :width]) for i in range(hands)
        ]
        most = max(int(np.count_nonzero(counts)) for _, counts in shares)
        slots = padded_size(most, -(-batch * width // (16 * devices)))
        dealt = [_share(*share, batch // devices, slots) for share in shares]
        batches += [
            CaptionBatch(*map(np.concatenate, zip(*dealt[i : i + devices], strict=True)))
            for i in range(0, hands, devices)
        ]
    return batches


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


def _share(
    ids: Int[np.ndarray, "caption token"],
    occurrences: Int[np.ndarray, "caption token"],
    captions: int,
    slots: int,
) -> CaptionBatch:
    """One device's part of a batch, filled up to `captions` rows and `slots` slots."""
    places = np.flatnonzero(occurrences)
    empty = (0, slots - len(places))
    return CaptionBatch(
        np.pad(ids, ((0, captions - len(ids)), (0, 0))),
        np.pad(places.astype(np.int32), empty),
        np.pad(occurrences.flat[places].astype(np.int32), empty),
    )
