"""One command as several processes of one machine, as several hosts run it."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from main_job import written

ROOT = Path(__file__).parents[2]


def run_processes(
    count: int, config: Any, workdir: Path, files: Path, *start: str, devices: int = 8
) -> list[str]:
    """Runs the command as `count` processes with `devices` in all.

    `start` is what Python runs in place of the command's module. What each says, after its exit
    code.
    """
    file = written(_distributed(config, count > 1), files / "settings.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [f"--config={file}", f"--workdir={workdir}"]
    flags = f"--xla_force_host_platform_device_count={devices // count}"
    started = []
    for process in range(count):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",  # As quick to compile as here.
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(process),
            "XDG_CACHE_HOME": str(files / "cache"),
            "TMPDIR": str(files),
        }
        command = [sys.executable, *(start or ("-m", "emcid_jax.main")), *arguments]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=500)[1] for process in started]
    return [f"{process.returncode} {text}" for process, text in zip(started, said, strict=True)]


def run_alone_and_together(config: Any, files: Path) -> tuple[Path, Path]:
    """Workdirs of the command as one process of four devices and as two of four, both in `files`.

    Hosts of as many devices draw the same bits, however many there are.
    """
    alone, together = files / "alone", files / "together"
    for count, workdir in ((1, alone), (2, together)):
        for said in run_processes(count, config, workdir, files, devices=4 * count):
            assert said.startswith("0 "), said
    return alone, together


def require_alike(found: Any, wanted: Any, tolerance: float) -> None:
    """JSON values alike: floats to `tolerance`, all else the same, in more than 20 places."""
    pair = (jax.tree.leaves_with_path(one) for one in (found, wanted))
    leaves = list(zip(*pair, strict=True))
    assert len(leaves) > 20
    for (place, value), (other, want) in leaves:
        assert place == other
        close = isinstance(want, float)
        assert value == (pytest.approx(want, abs=tolerance) if close else want), place


def _distributed(config: Any, value: bool) -> Any:
    """The settings with `run.distributed`, a sweep's in its base."""
    if hasattr(config, "base"):
        return dataclasses.replace(config, base=_distributed(config.base, value))
    return dataclasses.replace(config, run=dataclasses.replace(config.run, distributed=value))
