"""The main job killed anywhere ends alike; what others do meanwhile is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import read_list
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.tasks import edit
from emcid_jax.workflow import edit_job
from emcid_jax.workflow.workdir import Log, Run
from main_job import KILL, KILLED, REQUESTS, ROOT, TERM, require_same_results

KILLS = [
    # Stage I, between the records of a chunk
    ("emcid_jax.editing.bank.memories", "write", KILL, 3),
    ("emcid_jax.editing.bank.memories", "write", TERM, 0),
    ("emcid_jax.storage.checkpoints", "save", KILL, 2),  # statistics
    ("emcid_jax.editing.moments.second_moment", "_add", TERM, 0),
    ("emcid_jax.editing.export.edit_file", "write_edit", KILL, 0),  # between the two exports
    ("emcid_jax.evaluation.drawing.cache", "write_atomically", KILL, 9),  # evaluation
]
# What SIGTERM lets the run finish: the second chunk of two; the batch of captions that it is at.
SAVED = {"write": ("bank/*.safetensors", 4), "_add": ("moments/progress/{batch}", 1)}


@pytest.mark.parametrize(
    ("kills", "batch"),
    [
        pytest.param([KILLS[3], KILLS[5]], 1, id="twice"),
        pytest.param(KILLS, 3, id="everywhere", marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_and_started_again_it_ends_with_the_same_bits(
    kills: Sequence[tuple[str, str, int, int]],
    batch: int,
    finished_edit: Path,
    edit_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "workdir"
    for kill in kills:
        _, name, number, _ = kill
        done = edit_command(workdir, start=["-c", KILLED, *map(str, kill)])
        assert done.returncode == (143 if number == TERM else -number), done.stderr
        assert not (workdir / "metrics.json").exists()
        if number == TERM:
            *_, told, last = done.stderr.strip().splitlines()
            assert told.startswith("SIGTERM: stopping after")
            assert last == "stopped by SIGTERM; the same command goes on from here"
            pattern, files = SAVED[name]
            assert len(list(workdir.glob(pattern.format(batch=batch)))) == files
    assert (workdir / "edit.safetensors").exists()
    done = edit_command(workdir)
    assert done.returncode == 0, done.stderr
    require_same_results(workdir, finished_edit)


ADDS = """
import sys
from pathlib import Path
from emcid_jax.editing.bank import concepts, memories

other, folder = map(Path, sys.argv[1:])
(monet,) = [c for c in concepts.read_list(other) if c.request.source == "Claude Monet"]
memories.copy_record(other, folder, monet.memory)
concepts.add(folder, [monet])
"""


def test_what_another_process_adds_to_the_bank_meanwhile_stays_in_it(
    edit_config: EditConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"

    def find_memories(*_: Any) -> list[memories.Memory]:
        other = ROOT / "tests" / "data" / "version_0_1" / "bank"
        command = [sys.executable, "-c", ADDS, str(other), str(bank)]
        subprocess.run(command, cwd=ROOT, check=True)
        return [memories.Memory(*(np.zeros(1, np.float32),) * 5)] * len(REQUESTS)

    monkeypatch.setattr(edit, "find_memories", find_memories)
    monkeypatch.setattr(edit, "find_measured", lambda *_: None)
    monkeypatch.setattr(edit, "_mix", lambda *_: {})
    monkeypatch.setattr(edit, "write_edit", lambda *_, **__: None)
    run = Run(edit_config.run, tmp_path, Log(tmp_path / "metrics.jsonl"), make_mesh())
    edit.edit(edit_job.prepare(edit_config), run)
    found = {concept.request.source for concept in read_list(bank)}
    assert found == {"Claude Monet", *(request["source"] for request in REQUESTS)}
