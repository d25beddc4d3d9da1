"""What tasks leave in a workdir is what they say that they write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from emcid_jax.storage import ownership
from emcid_jax.workflow import workdir as folders


@pytest.fixture(autouse=True)
def nothing_is_written_that_was_not_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's WRITES is what is asked for before a run; a name that is missing there is found."""
    exclusive = folders.exclusive

    @contextlib.contextmanager
    def watched(workdir: Path, names: Sequence[str]) -> Iterator[None]:
        known = {".lock", ownership.LIST}
        known.update(os.listdir(workdir) if workdir.is_dir() else ())
        with exclusive(workdir, names):
            yield
        new = set(os.listdir(workdir)) - known
        assert [name for name in new if not any(fnmatchcase(name, n) for n in names)] == []

    monkeypatch.setattr(folders, "exclusive", watched)
