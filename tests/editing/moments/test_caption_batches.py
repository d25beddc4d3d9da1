from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.editing.moments.caption_batches import prefix_counts

CAPTIONS = st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=5), min_size=1, max_size=12)


@given(CAPTIONS)
def test_every_prefix_is_counted_once(captions: list[list[int]]) -> None:
    texts = [[8, *words, 9] for words in captions]
    ids = np.zeros((len(texts), 7), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    counts = prefix_counts(ids, np.array([len(text) for text in texts]))
    places = [(row, column) for row, column in np.argwhere(counts).tolist()]
    found = [tuple(texts[row][: column + 1]) for row, column in places]
    assert len(set(found)) == len(found)
    assert all(len(prefix) == column + 1 for prefix, (_, column) in zip(found, places, strict=True))
    expected = Counter(tuple(text[: i + 1]) for text in texts for i in range(len(text)))
    assert dict(zip(found, (int(counts[p]) for p in places), strict=True)) == expected


def test_captions_without_tokens_count_nothing() -> None:
    counts = prefix_counts(np.full((3, 4), 5), np.array([2, 0, 0]))
    assert counts.sum(axis=0).tolist() == [1, 1, 0, 0]
