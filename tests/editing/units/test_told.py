"""Names inside others, against a search for words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.editing.units.names import Names, Strangers
from emcid_jax.editing.units.told import inside

WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=8), st.data())
def test_a_source_is_inside_what_has_its_words_before_the_end(
    keys: list[str], data: st.DataObject
) -> None:
    sources = data.draw(st.integers(1, len(keys)))
    nothing = Strangers(np.zeros((sources, 0, 1), np.float32), np.zeros((sources, 0), bool))
    states, mask = np.zeros((len(keys), 1, 1), np.float32), np.ones((len(keys), 1), bool)
    texts = [f"{key}!" for key in keys]
    found = inside(Names(texts, keys, states, mask, sources, (nothing, nothing)))
    assert len(found) == sources
    for key, longer in zip(keys, found, strict=False):
        pairs = zip(texts, keys, strict=True)
        wanted = [text for text, other in pairs if f" {key} " in f" {other}"]
        assert longer == tuple(dict.fromkeys(wanted))
