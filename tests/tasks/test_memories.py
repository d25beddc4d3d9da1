"""Chunks of Stage I: none larger than asked, as few as can be, and none nearly empty."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.tasks.memories import even_chunk


@given(st.integers(1, 500), st.integers(1, 64))
def test_chunks_are_as_few_as_can_be_and_waste_least(count: int, most: int) -> None:
    size = even_chunk(count, most)
    chunks = math.ceil(count / most)
    assert 1 <= size <= most
    assert math.ceil(count / size) == chunks
    # One compiled program serves all chunks, so the places it leaves empty are work lost.
    assert size * chunks - count < chunks


@pytest.mark.parametrize(("count", "most", "size"), [(25, 16, 13), (300, 16, 16), (5, 2, 2)])
def test_examples(count: int, most: int, size: int) -> None:
    assert even_chunk(count, most) == size
