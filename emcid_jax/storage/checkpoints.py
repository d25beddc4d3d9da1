"""Arrays on disk: atomic, resumable. The only file that knows Orbax.

`save` and `latest` keep the state of something that runs; `save_weights` and `load_weights` keep a
model's weights, which every device reads for itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from emcid_jax.runtime.errors import UserError, first_line
from emcid_jax.storage.files import open_to_read, write_atomically

WEIGHTS = "orbax"
"""Folder of the weights in a model folder."""
RECORD = "orbax.json"
"""What the weights are, beside them: hashes of the model's parts and of every file, and shapes."""

_OWN = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")
"""Names of steps, whole ones and those that a killed process was saving."""


class Checkpoint(NamedTuple):
    """One saved state: its step, nested dict of NumPy arrays, and JSON metadata."""

    step: int
    arrays: dict[str, Any]
    metadata: dict[str, Any]


def save(folder: Path, step: int, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes `arrays` (nested dict; gathered to the host) and `metadata` (JSON) as `folder/step`.

    The step appears by one rename when it is complete; older steps go only after that, so at any
    moment `latest` finds a whole one. Steps must grow. With several processes only the first may
    call this (Orbax writes host arrays on no other); it waits for none.
    """
    # The interface v1 compares paths in a collective of all processes, whatever is active.
    import orbax.checkpoint as ocp

    target = str(folder.absolute() / str(step))
    if step in _steps(folder):
        raise ValueError(f"step {step} already stands in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(np.asarray, dict(arrays))
    alone = _alone().multiprocessing.v0()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(target, ocp.args.PyTreeSave(host), custom_metadata=dict(metadata))
    for child in folder.iterdir():  # Older steps, and what a killed save left.
        if child.name != str(step) and _OWN.fullmatch(child.name):
            shutil.rmtree(child)


def latest(folder: Path) -> Checkpoint | None:
    """The newest step under `folder` that can be read, or None.

    A step that cannot (half copied from another machine, damaged) is passed over with a warning.
    """
    from orbax.checkpoint import v1 as ocp

    for step in sorted(_steps(folder), reverse=True):
        target = str(folder.absolute() / str(step))
        try:
            with _alone():
                metadata = cast(dict[str, Any], ocp.metadata(target).custom_metadata)
                return Checkpoint(step, cast(dict[str, Any], ocp.load(target)), metadata)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logging.warning("%s: passed over, not readable: %s", target, error)
    return None


def save_weights(folder: Path, params: Mapping[str, Any], model: Mapping[str, str]) -> None:
    """Writes a model's weights (nested dict of arrays) into its `folder`, `RECORD` last.

    Arrays keep their type. `model` names the weights: the hash of every part.
    """
    from orbax.checkpoint import v1 as ocp

    folder.mkdir(parents=True, exist_ok=True)
    context = _alone()
    context.array.saving.use_compression = False  # Weights hardly compress; reading them is faster.
    # Slices for the devices of one process would be one more program for every shape.
    context.array.saving.use_replica_parallel = jax.process_count() > 1
    with context:
        ocp.save(str((folder / WEIGHTS).absolute()), dict(params), overwrite=True)
    shapes = {name: list(leaf.shape) for name, leaf in _named(params).items()}
    record = {"model": dict(model), "shapes": shapes, "files": _hashes(folder / WEIGHTS)}
    write_atomically(folder / RECORD, _dumped(record))


def holds_weights(folder: Path) -> bool:
    """Whether the weights of the model in `folder` are Orbax's."""
    return (folder / RECORD).exists() or (folder / WEIGHTS).exists()


def load_weights(folder: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that `save_weights` wrote, in the types of `abstract` (`jax.ShapeDtypeStruct`s).

    Devices read their own shares; how many wrote them does not matter. The shardings in `abstract`
    say where each array goes, by default to the first device.

    UserError naming the file or array if a byte was changed, or these are another model's weights.
    """
    from orbax.checkpoint import v1 as ocp

    wanted, stored = _named(abstract), require_intact(folder)
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    wrong += [f"{name} is unexpected" for name in sorted(stored.keys() - wanted.keys())]
    wrong += [
        f"{name} has shape {tuple(stored[name])}, expected {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & stored.keys())
        if list(wanted[name].shape) != stored[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{folder / WEIGHTS}: of another model: {', '.join(wrong[:5])}{more}")
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or where)

    target = jax.tree.map(placed, dict(abstract))
    try:
        with _alone():
            return cast(dict[str, Any], ocp.load(str((folder / WEIGHTS).absolute()), target))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / WEIGHTS}: not readable: {first_line(error)}; convert it again"
        ) from error


def stored_types(folder: Path) -> dict[tuple[str, ...], str]:
    """Path in the tree -> stored type of every array in the weights of the model in `folder`."""
    from orbax.checkpoint import v1 as ocp

    with _alone():
        found = cast(Any, ocp.metadata(str((folder / WEIGHTS).absolute()))).metadata
    leaves = cast(dict[tuple[str, ...], Any], flatten_dict(found))
    return {path: np.dtype(leaf.dtype).name for path, leaf in leaves.items()}


def require_intact(folder: Path) -> dict[str, list[int]]:
    """The shape of every array in the weights of `folder`, whose files are checked to the byte.

    UserError naming the first file that is not the one that was written.
    """
    record = _read_record(folder)
    found, said = _hashes(folder / WEIGHTS), record["files"]
    for name in sorted(found.keys() | said.keys()):
        if found.get(name) != said.get(name):
            what = "is missing" if name not in found else "is not what was written"
            names = ", ".join(f"{part} {digest[:12]}" for part, digest in record["model"].items())
            raise UserError(
                f"{folder / WEIGHTS / name}: {what} (damaged, or of another model than {names}); "
                "convert the model again"
            )
    return record["shapes"]


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        content = path.read_bytes()
        record = json.loads(content)
        if _dumped({name: record[name] for name in ("model", "shapes", "files")}) != content:
            raise ValueError("its checksum does not fit")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); convert the model again") from error
    return record


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file under `folder`."""

    def one(path: Path) -> str:
        with open_to_read(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(one, paths)
        return {
            str(path.relative_to(folder)): digest
            for path, digest in zip(paths, digests, strict=True)
        }


def _dumped(record: Mapping[str, Any]) -> bytes:
    """The record's file, its own checksum included: one form for one content."""
    text = json.dumps(record, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**record, "checksum": digest}, sort_keys=True, indent=1).encode()


def _named(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(path): leaf for path, leaf in flatten_dict(dict(tree)).items()}


def _alone() -> Any:
    """Orbax's context in which this process waits for no other: every one has its own disk."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    me = jax.process_index()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    return context


def _steps(folder: Path) -> list[int]:
    """Complete steps under `folder`; a save in flight carries a temporary name."""
    if not folder.is_dir():
        return []
    return [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
