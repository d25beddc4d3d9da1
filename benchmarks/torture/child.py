"""A run in a process of its own, forked from one that has imported everything already."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MEMORY = 2 * 2**30
"""More resident memory than this counts as a failure."""
CAGE = 6 * 2**30
"""Address space of a child: it cannot take the machine down with it."""
_NUMBERS = itertools.count()
_WRITES = frozenset(
    (
        "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
        "os.chmod", "shutil.rmtree", "shutil.copyfile", "shutil.move",
    )
)  # fmt: skip
"""Audit events of Python that say that the file system is about to change; `open` to write, too."""


class Kill(NamedTuple):
    """When and how a run is killed."""

    number: int
    """SIGKILL or SIGTERM."""
    seconds: float = 0.0
    """After so long, if `operation` is 0."""
    operation: int = 0
    """Before this file operation of the process, counted from 1."""


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    out: str
    err: str
    seconds: float
    memory: int
    """Most resident bytes."""
    hung: bool
    """It was ended by the time limit."""
    operations: int
    """File operations that it began, if they were counted."""


class Clock:
    """Seconds since it was made, without those in which this process was stopped."""

    def __init__(self) -> None:
        self._last, self._seconds = time.monotonic(), 0.0

    def tick(self) -> float:
        """The seconds; to be called several times a second."""
        now = time.monotonic()
        self._seconds += min(now - self._last, 0.5)
        self._last = now
        return self._seconds


def warm_up(cache: Path) -> None:
    """Imports all that runs import, and has compiled programs kept in `cache`; starts no device."""
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    import orbax.checkpoint  # noqa: F401
    import transformers.models.clip.tokenization_clip  # noqa: F401 (slow)

    import emcid_jax.main
    import emcid_jax.tasks

    for module in pkgutil.iter_modules(emcid_jax.tasks.__path__):
        importlib.import_module(f"emcid_jax.tasks.{module.name}")
    from emcid_jax.reporting.plots.theme import loss_figure

    loss_figure(np.ones((2, 3), np.float32))  # so that matplotlib has its fonts


class Running(NamedTuple):
    """A run that was begun."""

    process: int
    files: tuple[Path, Path, Path]
    """Its output, its errors, and its count of file operations."""
    began: float


def run(
    work: Callable[[], int | None],
    folder: Path,
    *,
    limit: float = 180.0,
    kill: Kill | None = None,
    count: bool = False,
) -> Ended:
    """Runs `work` in a forked process; what it returns is the exit code.

    Args:
        work: what runs. An exception leaves its traceback on stderr and gives 1.
        folder: gets the output; made if it is not there.
        limit: seconds until it is ended.
        kill: how it is killed, if at all.
        count: whether file operations are counted though none is awaited.
    """
    return ended(start(work, folder, kill=kill, count=count), limit=limit, kill=kill)


def start(
    work: Callable[[], int | None],
    folder: Path,
    *,
    kill: Kill | None = None,
    count: bool = False,
) -> Running:
    """Begins what `run` runs."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{os.getpid()}.{next(_NUMBERS)}"
    out, err, counted = (folder / f"{name}.{kind}" for kind in ("out", "err", "count"))
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(work, out, err, counted if count or (kill and kill.operation) else None, kill)
    return Running(child, (out, err, counted), began)


def ended(running: Running, *, limit: float = 180.0, kill: Kill | None = None) -> Ended:
    """Waits for a run, and kills it as `run` says."""
    child, (out, err, counted), began = running
    clock = Clock()
    strike = kill.seconds if kill and not kill.operation else None
    hung, pause = False, 0.001
    while True:
        process, status, usage = os.wait4(child, os.WNOHANG)
        if process:
            break
        now = clock.tick()
        if strike is not None and now >= strike:
            os.kill(child, kill.number if kill else signal.SIGKILL)
            strike = None
        if now >= limit and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)
    seconds = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    operations = int(counted.read_text() or 0) if counted.exists() else 0
    said, told = (
        path.read_bytes().decode("utf-8", "replace") if path.exists() else "" for path in (out, err)
    )
    for path in (out, err, counted):
        path.unlink(missing_ok=True)
    return Ended(code, said, told, seconds, usage.ru_maxrss * 1024, hung, operations)


def command(
    values: dict[str, Any], workdir: Path, logs: Path, *overrides: str
) -> Callable[[], int | None]:
    """A run of main with these settings, to be given to `run`; its config file lies in `logs`."""
    text = (
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({values!r})\n"
    )
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.{os.getpid()}.py"
    file.write_text(text, encoding="utf-8")

    def work() -> int | None:
        from absl import logging

        from emcid_jax import main

        logging.use_absl_handler()
        sys.argv = ["main", f"--config={file}", f"--workdir={workdir}", *overrides]
        return main.main(main._parse_flags(sys.argv))

    return work


def _be(
    work: Callable[[], int | None], out: Path, err: Path, counted: Path | None, kill: Kill | None
) -> None:
    """The child: never returns."""
    code = 1
    try:
        for number, path in ((1, out), (2, err)):
            file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            os.dup2(file, number)
            os.close(file)
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + CAGE, used + CAGE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if counted:
            _count_operations(counted, kill)
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_operations(counted: Path, kill: Kill | None) -> None:
    """Counts file operations, and kills this process before the one that `kill` names."""
    done = 0
    out = os.open(counted, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)

    def hook(event: str, arguments: Sequence[Any]) -> None:
        nonlocal done
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in _WRITES
        if changes:
            done += 1
            os.pwrite(out, b"%d" % done, 0)
            if kill and done == kill.operation:
                os.kill(os.getpid(), kill.number)

    sys.addaudithook(hook)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
