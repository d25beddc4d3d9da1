"""Locks that would never be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.locks import held


def test_a_folder_given_for_two_things_is_named(tmp_path: Path) -> None:
    """E.g. a bank as the workdir of the run that adds to it."""
    with (
        held(tmp_path / ".lock", "--workdir is 'x'", wait=False),
        pytest.raises(UserError, match=r"the bank is 'x', which this run uses for something else"),
        held(tmp_path / ".lock", "the bank is 'x'", wait=True),
    ):
        pass
    with held(tmp_path / ".lock", "--workdir is 'x'", wait=False):
        pass
