"""Chunks of Stage I: as few as can be, none nearly empty; a resumed run computes as the first."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.editing.concept_batch import ConceptBatch
from emcid_jax.parallel import even_chunk
from emcid_jax.tasks.memories import earlier_batch


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


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, ConceptBatch(8, True)),
        ({"chunk": 15}, None),
        ({"devices": 2}, None),
        ({"concept_batch": 4}, None),
    ],
)
def test_the_batch_of_the_same_run_is_taken_again(
    changed: dict[str, int], wanted: ConceptBatch | None
) -> None:
    asked = {"chunk": 16, "devices": 1, "concept_batch": 0}
    filed = json.loads(json.dumps(asked | {"batch": ConceptBatch(8, True)}))
    assert earlier_batch([{}, filed, {}], asked | changed) == wanted
