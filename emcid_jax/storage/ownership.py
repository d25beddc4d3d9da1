"""Whose a path is: a path that a user names is replaced or deleted only if this program wrote it.

What lies in a workdir is known by the list `.emcid_jax.json` beside it, which is written before any
result is. Where there is none (version 0.1 wrote none, and copies may lack it) content decides: the
record of a run, or the metadata of safetensors files. A model's folder is nobody's workdir.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import (
    file_hash,
    require_folder,
    require_plain,
    require_plain_or_folder,
    write_atomically,
)

LIST = ".emcid_jax.json"
"""In a workdir: names, or patterns of names, of what this program writes there."""
SIGNATURE = "emcid_jax"
"""Field of the metadata in safetensors files that only this program writes."""
_OURS = {SIGNATURE, "second_moments", "unit_statistics", "provenance", "ledger"}
"""Fields of the metadata in safetensors files of ours: exports, moments, memories, edits."""


def require_apart(folder: Path, said: str, settings: object = None) -> None:
    """UserError if `folder`, which is to be written, is a model's, lies in one or holds one.

    Args:
        folder: what the user named; links are followed.
        said: how the user named it, e.g. `--workdir is 'runs/1'`.
        settings: a dataclass of settings. The models that it names must not lie in `folder`, unless
            this program wrote them there.
    """
    place = Path(os.path.realpath(folder))
    for parent in (place, *place.parents):
        if is_model(parent):
            where = "which is a model's folder" if parent == place else f"inside the model {parent}"
            raise UserError(f"{said}, {where}; give a folder of its own")
    for name in _strings(settings):
        if "\0" in name:
            continue  # No path.
        model = Path(os.path.realpath(os.path.expanduser(name)))
        inside = place in model.parents and is_model(model)
        if inside and not _wrote(place, model.relative_to(place).parts[0]):
            raise UserError(f"{said}, which holds the model {name}; give a folder of its own")


def require_free(workdir: Path, names: Sequence[str], said: str) -> None:
    """UserError naming the first file or folder in `workdir` that a task would take for its own.

    Args:
        workdir: where the task writes; need not be there.
        names: what it writes there, as names or patterns such as `grid-*.png`.
        said: how the user named `workdir`.
    """
    for path in _there(workdir, names):
        require_plain_or_folder(path)
        if not _is_empty_folder(path) and not _wrote(workdir, path.name) and not _is_ours(path):
            raise UserError(
                f"{said}, but {path} was not written by this program; move it away, or give "
                "another folder"
            )


def take(workdir: Path, names: Sequence[str], said: str) -> None:
    """Checks as `require_free` and notes in `workdir` that what has these names is ours."""
    require_free(workdir, names, said)
    known = _listed(workdir)
    if not known.issuperset(names):
        content = {"about": "written by emcid_jax", "names": sorted(known.union(names))}
        write_atomically(workdir / LIST, (json.dumps(content, indent=1) + "\n").encode())


def names_in(workdir: Path) -> tuple[str, ...]:
    """Names, or patterns of names, of what this program writes in `workdir`, as it was noted."""
    return tuple(sorted(_listed(workdir)))


def own_in(workdir: Path) -> list[Path]:
    """The files and folders in `workdir` that have these names."""
    return _there(workdir, names_in(workdir))


def folders_in(workdir: Path, names: Sequence[str]) -> list[Path]:
    """The folders in `workdir` that have these names."""
    return [path for path in _there(workdir, names) if path.is_dir() and not path.is_symlink()]


def is_model(folder: Path) -> bool:
    """Whether `folder` is that of a model, or of a part of one."""
    if os.path.isfile(folder / "model_index.json"):
        return True
    config = _read_json(folder / "config.json")
    return bool({"_class_name", "architectures", "model_type"} & config.keys())


def signature(folder: Path) -> str:
    """What the metadata of the weights of a folder that this program writes say about the rest.

    The names of its other files and their SHA-256, as JSON.
    """
    others = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    return json.dumps({path.name: file_hash(path) for path in others}, sort_keys=True)


def require_new(path: Path) -> None:
    """UserError if anything lies at `path`, which is to be made and never replaced."""
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already; move it away, or give another --workdir")


def require_own_file(path: Path) -> None:
    """UserError if there is a safetensors file at `path` that this program has not signed."""
    require_plain(path)
    if path.exists() and SIGNATURE not in _metadata(path):
        raise UserError(
            f"{path}: was not written by this program; move it away, or give another --workdir"
        )


def require_own_folder(target: Path, weights: str) -> None:
    """UserError naming what in `target` this program did not write; nothing may be there at all.

    Args:
        target: a folder that is to be replaced as a whole.
        weights: the file in it that has a `signature`.
    """
    require_folder(target)
    about = _metadata(target / weights)
    said, signed = _read_json_text(about.get(SIGNATURE, "")), SIGNATURE in about
    first = not signed and _is_of_first_version(target)
    for path in sorted(target.iterdir()) if target.is_dir() else ():
        if not stat.S_ISREG(path.lstat().st_mode):
            own = False
        elif path.name == weights:
            own = signed or first
        else:
            own = (
                said.get(path.name) == file_hash(path)
                if signed
                else first and path.suffix == ".json"
            )
        if not own:
            raise UserError(
                f"{path}: was not written by this program, or was changed since; move it away, or "
                f"give another folder than {target}"
            )


def _is_of_first_version(target: Path) -> bool:
    """Whether `target` is what a run of version 0.1 exported: it signed nothing."""
    ledger = _metadata(target.with_name("edit.safetensors")).get("ledger")
    return bool(ledger) and target.name == "text_encoder" and _holds_run(target.parent)


def _there(workdir: Path, names: Sequence[str]) -> list[Path]:
    """What lies in `workdir` under these names."""
    found = sorted(os.listdir(workdir)) if workdir.is_dir() else []
    return [workdir / name for name in found if _matches(name, names)]


def _wrote(workdir: Path, name: str) -> bool:
    """Whether this program wrote what is called `name` in `workdir`."""
    return _matches(name, _listed(workdir)) or _holds_run(workdir)


def _listed(workdir: Path) -> set[str]:
    names = _read_json(workdir / LIST).get("names")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _holds_run(workdir: Path) -> bool:
    """Whether `workdir` has the record of a run, of any version."""
    if _read_json(workdir / "config.json").keys() >= {"config", "inputs", "environment"}:
        return True
    if _first_line(workdir / "images.csv") == "model,prompt,seed,file":
        return True
    progress = _read_json_text(_first_line(workdir / "metrics.jsonl"))
    return progress.keys() >= {"time", "phase", "seconds"}


def _is_ours(path: Path) -> bool:
    """Whether the metadata of a safetensors file, or of all in a folder, are this program's."""
    files = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    return bool(files) and all(_OURS & _metadata(file).keys() for file in files)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _matches(name: str, patterns: Sequence[str] | set[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _metadata(file: Path) -> Mapping[str, str]:
    """Of a safetensors file; empty if it is none."""
    try:
        if not os.path.isfile(file):
            return {}
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _read_json(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty if it is none."""
    return _read_json_text(_text(file, lambda stream: stream.read(2**20)))


def _read_json_text(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(file: Path) -> str:
    return _text(file, lambda stream: stream.readline(2**16)).rstrip("\r\n")


def _text(file: Path, read: Callable[[Any], str]) -> str:
    """A part of a text file; empty if it is none."""
    try:
        if not os.path.isfile(file):
            return ""
        with file.open(encoding="utf-8") as stream:
            return read(stream)
    except (OSError, ValueError):
        return ""


def _strings(settings: object) -> Iterator[str]:
    """Every text in a dataclass of settings, which may be nested."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, tuple | list):
        for value in settings:
            yield from _strings(value)
    elif dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            yield from _strings(getattr(settings, field.name))
