"""The main job with a mirror: killed on machines that are then gone, it ends with the same bits."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from emcid_jax.config import EditConfig
from emcid_jax.storage.mirror.manifest import MANIFEST
from emcid_jax.storage.ownership import LIST
from main_job import KILL, KILLED, TERM, require_same_results

KILLS = [
    ("emcid_jax.editing.bank.memories", "write", TERM, 0),
    ("emcid_jax.storage.mirror.copying", "_settled", KILL, 2),  # Whatever the run does then.
    ("emcid_jax.editing.export.edit_file", "write_edit", KILL, 0),  # Between the two exports.
]
"""One on each machine."""


@pytest.mark.slow  # Five runs; tests/storage/mirror cuts the copying everywhere in seconds.
def test_every_machine_goes_on_where_the_mirror_is(
    finished_edit: Path,
    edit_config: EditConfig,
    edit_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    mirror = tmp_path / "mirror"
    run = dataclasses.replace(edit_config.run, mirror=f"file://{mirror}")
    config = dataclasses.replace(edit_config, run=run)
    for kill in KILLS:
        module, name, number, _ = kill
        machine = tmp_path / f"{module}.{name}"
        done = edit_command(machine, start=["-c", KILLED, *map(str, kill)], config=config)
        assert done.returncode == (143 if number == TERM else -number), done.stderr
        if number == TERM:  # The chunk was finished, and copied within the notice.
            assert len(list(mirror.glob("bank/*.safetensors"))) == run.save_every
    last = tmp_path / "last"
    done = edit_command(last, config=config)
    assert done.returncode == 0, done.stderr
    require_same_results(last, finished_edit)
    # Anybody may take the results from the mirror.
    require_same_results(mirror, finished_edit)
    assert names(mirror) == names(last)


def names(folder: Path) -> set[str]:
    """What a run left, but for what is beside its results."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if Path(name).name not in (".lock", LIST, MANIFEST)}
