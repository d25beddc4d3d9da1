"""JSON of this program's own files."""

from __future__ import annotations

import pytest

from emcid_jax.storage.json_text import loads


def test_what_this_program_wrote_is_never_deep() -> None:
    assert loads('{"a": [1, {"b": "' + "[" * 99 + '"}]}') == {"a": [1, {"b": "[" * 99}]}
    assert loads("[" * 64 + "]" * 64) is not None
    for depth in (65, 900, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            loads("[" * depth + "]" * depth)
