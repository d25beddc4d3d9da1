"""Arrays on disk: atomic, resumable. The only file that knows Orbax."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np


class Checkpoint(NamedTuple):
    """One saved state: its step, nested dict of NumPy arrays, and JSON metadata."""

    step: int
    arrays: dict[str, Any]
    metadata: dict[str, Any]


def save(folder: Path, step: int, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes `arrays` (nested dict; gathered to the host) and `metadata` (JSON) as `folder/step`.

    The step appears by one rename when it is complete; older steps go only after that, so at any
    moment `latest` finds a whole one. Steps must grow.
    """
    from orbax.checkpoint import v1 as ocp

    target = str(folder.absolute() / str(step))
    if step in _steps(folder):
        raise ValueError(f"step {step} already stands in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(np.asarray, dict(arrays))
    ocp.save(target, host, custom_metadata=dict(metadata))
    for child in folder.iterdir():  # Older steps, and what a killed save left.
        if child.name != str(step):
            shutil.rmtree(child)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete step under `folder`, or None."""
    from orbax.checkpoint import v1 as ocp

    steps = _steps(folder)
    if not steps:
        return None
    target = str(folder.absolute() / str(max(steps)))
    metadata = cast(dict[str, Any], ocp.metadata(target).custom_metadata)
    return Checkpoint(max(steps), cast(dict[str, Any], ocp.load(target)), metadata)


def _steps(folder: Path) -> list[int]:
    """Complete steps under `folder`; a save in flight carries a temporary name."""
    if not folder.is_dir():
        return []
    return [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
