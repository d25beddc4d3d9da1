"""The folder a run leaves behind: who may write it, what it was made from, how far it got."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from emcid_jax.config import RunConfig, renamed
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums, ownership
from emcid_jax.storage.files import LOCK, is_finished, open_to_append, sweep, write_atomically
from emcid_jax.storage.locks import held
from emcid_jax.storage.mirror.joining import begin
from emcid_jax.storage.mirror.keeping import kept

FREE_FIELDS = (
    "evaluation",
    "run",
    "stage_one.concept_batch",
    "requests.path",
    "model.path",
)
"""Settings that a later run of the same workdir may change: they change no stored result (images
carry the settings they were drawn with), or their content is compared instead of their name."""


def said(workdir: Path) -> str:
    """How messages begin that are about the workdir."""
    return f"--workdir is {str(workdir)!r}"


@contextlib.contextmanager
def exclusive(workdir: Path, names: Sequence[str]) -> Iterator[None]:
    """Creates `workdir` and holds it for this process; the system lets go when the process dies.

    Args:
        workdir: the folder.
        names: what the task writes in it; patterns such as `grid-*.png`.

    Raises:
        UserError: it cannot be written, another run holds it, or something that this program did
            not write has one of `names`.
    """
    what = said(workdir)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(workdir / LOCK, what, wait=False))
        except OSError as error:
            raise UserError(
                f"{what}, which cannot be written ({error.strerror}); give another"
            ) from error
        ownership.take(workdir, names, what)
        sweep(workdir)
        for folder in ownership.folders_in(workdir, names):
            sweep(folder, below=True)
        yield


@contextlib.contextmanager
def mirrored(workdir: Path, url: str = "") -> Iterator[Path]:
    """The folder that this process works in: `workdir` on the first one, copies on the others.

    All processes start from what lies in the first one's, find the same things done, and do the
    same; what the others write is dropped. Nothing but the first one's disk needs to last, or the
    mirror at `url` (empty: none), from which it starts if it is empty.
    """
    if parallel.is_first():
        if url:
            workdir.mkdir(parents=True, exist_ok=True)
            with held(workdir / LOCK, said(workdir), wait=False):
                begin(url, workdir)
        files = (path for path in sorted(workdir.rglob("*")) if path.is_file())
        sender: Any = _Sender()
        with tarfile.open(None, "w|", sender, bufsize=parallel.BLOCK, dereference=True) as tar:
            for path in files:
                if is_finished(path.name) or path.name == ownership.LIST:
                    tar.add(path, path.relative_to(workdir))
        parallel.share(b"")
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="emcid_jax-") as folder:
        receiver: Any = _Receiver()
        with tarfile.open(None, "r|", receiver, bufsize=parallel.BLOCK) as tar:
            tar.extractall(folder, filter="data")
        while receiver.read(parallel.BLOCK):
            pass  # What fills up the last block.
        yield Path(folder)


class _Sender:
    """A file whose blocks go to the other processes."""

    def write(self, block: bytes) -> int:
        parallel.share(block)
        return len(block)


class _Receiver:
    """A file of the blocks that the first process sends."""

    def __init__(self) -> None:
        self._left, self._ended = b"", False

    def read(self, size: int) -> bytes:
        while len(self._left) < size and not self._ended:
            block = parallel.share(b"")
            self._left += block
            self._ended = not block
        found, self._left = self._left[:size], self._left[size:]
        return found


def require_writable(workdir: Path, names: Sequence[str], config: Any) -> None:
    """UserError if the run could not, or must not, write into `workdir`; touches nothing.

    Args:
        workdir: the folder, which is no model's, lies in none, and holds none of those that
            `config` names.
        names: what the task writes in it, see `exclusive`.
        config: the task's settings.
    """
    what = said(workdir)
    ownership.require_apart(workdir, what, config)
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{what}, but {existing} is a file; give another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what}, but {existing} is not writable")
    ownership.require_free(workdir, names, what)


def require_same(workdir: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """UserError naming the field if `workdir` was made with settings or inputs that differ.

    `config` is the resolved settings as nested dicts. `inputs` maps a field to the hash of what it
    names: the same path may hold something else today.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        old = read_config(path.parent)
        old_config = dict(_flat(renamed.current(old["config"])))
        old_inputs = dict(old["inputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not readable ({error}); use a new --workdir") from error
    for field, value in _flat(config):
        free = any(field == name or field.startswith(f"{name}.") for name in FREE_FIELDS)
        if not free and field in old_config and old_config[field] != value:
            raise UserError(
                f"config.{field} is {_shown(value)}, but {workdir} was made with "
                f"{_shown(old_config[field])}; give that again or use a new --workdir"
            )
    for field, value in inputs.items():
        if old_inputs.get(field) != value:
            raise UserError(
                f"config.{field}: the content is not what {workdir} was made from; "
                "restore it or use a new --workdir"
            )


def write_config(
    workdir: Path, config: Any, inputs: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """config.json: the resolved settings, hashes of the inputs, versions and device."""
    content = {
        "config": dataclasses.asdict(config),
        "inputs": dict(inputs),
        "environment": dict(environment),
    }
    write_json(workdir / "config.json", content)


def read_config(workdir: Path) -> dict[str, Any]:
    """What `write_config` wrote. UserError if it is damaged."""
    return checksums.read_json(workdir / "config.json", "remove it", older=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON by one rename."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


@dataclasses.dataclass(frozen=True)
class Log:
    """metrics.jsonl: one JSON object a line, appended; the primary record of progress."""

    path: Path

    def write(self, phase: str, seconds: float, **figures: Any) -> None:
        """Appends one line. A line cut by a kill stays alone on its own line."""
        line = {"time": round(time.time(), 3), "phase": phase, "seconds": round(seconds, 4)}
        with open_to_append(self.path) as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line | figures).encode() + b"\n")

    @contextlib.contextmanager
    def timed(self, phase: str, **known: Any) -> Iterator[dict[str, Any]]:
        """Writes the seconds of the block, with `known` and what it puts into the yielded dict."""
        figures: dict[str, Any] = dict(known)
        start = time.perf_counter()
        yield figures
        self.write(phase, time.perf_counter() - start, **figures)

    def seconds(self) -> dict[str, float]:
        """Seconds per phase, added up over every run of this workdir."""
        total: dict[str, float] = defaultdict(float)
        for record in self.records():
            total[record["phase"]] += record["seconds"]
        return {phase: round(seconds, 3) for phase, seconds in total.items()}

    def records(self) -> Iterator[dict[str, Any]]:
        """Every line that no kill has cut."""
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a task: what everything that it does has in common."""

    config: RunConfig
    """Sizes of chunks, progress bars (of the first process)."""
    workdir: Path
    """The folder that it holds."""
    log: Log
    mesh: Mesh
    """All devices."""


@contextlib.contextmanager
def running(
    config: RunConfig,
    workdir: Path,
    names: Sequence[str],
    check: Callable[[Path], None] | None = None,
) -> Iterator[Run]:
    """Holds `workdir` for a run that writes `names` there, see `exclusive`, and logs it there.

    With `config.mirror` it goes on from there if it is empty, and is copied there meanwhile.
    `check` raises UserError if a folder holds another run; it sees the mirror's, then `workdir`.
    """
    with exclusive(workdir, names), contextlib.ExitStack() as stack:
        mesh = parallel.make_mesh(weight_shards=config.weight_shards)
        shown = config.progress and parallel.is_first()
        config = dataclasses.replace(config, progress=shown)
        if config.mirror and parallel.is_first():
            stack.enter_context(kept(config.mirror, workdir, check))
        if check is not None:
            check(workdir)
        yield Run(config, workdir, Log(workdir / "metrics.jsonl"), mesh)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted name, value); tuples as the lists that JSON gives back."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)
