"""The start: an empty workdir goes on from its mirror, an empty mirror begins with the workdir.

There is one owner at a time. A manifest names the workdir that it is of. One that starts from it
becomes its owner, and the one before stops copying.
"""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums, ownership
from emcid_jax.storage.files import file_hash, replacing
from emcid_jax.storage.mirror import manifest as manifests
from emcid_jax.storage.mirror import snapshot
from emcid_jax.storage.mirror.manifest import MANIFEST, Manifest
from emcid_jax.storage.mirror.remote_folder import RemoteFolder, open_remote, reason

Check = Callable[[Path], None]
"""UserError if the folder holds the record of another run than this one."""


def begin(url: str, workdir: Path, check: Check | None = None) -> tuple[RemoteFolder, Manifest]:
    """Joins `workdir` and the mirror at `url`: an empty one of them gets what the other holds.

    Args:
        url: any that fsspec knows.
        workdir: this process's; filled from the mirror if it holds no results. Else it must be the
            mirror's owner, and counts.
        check: looks at the mirror's `config.json` before anything is copied from there.

    Raises:
        UserError: the mirror is not to be used, holds another run or files of others, or another
            machine went on with this run.
    """
    said = f"config.run.mirror is {url!r}"
    remote = open_remote(url, said)
    try:
        return remote, _joined(remote, workdir, check, said)
    except UserError:
        raise
    except Exception as error:  # Every driver has errors of its own.
        raise UserError(f"{said}, which cannot be used: {reason(error)}") from error


def _joined(remote: RemoteFolder, workdir: Path, check: Check | None, said: str) -> Manifest:
    mine, theirs = _read_mine(workdir), manifests.read(remote)
    empty = not snapshot.files_in(workdir)
    if theirs is None:
        if remote.holds_anything():
            raise UserError(f"{said}, which holds other files; give an empty folder")
        if mine.get("whole") is False:
            raise UserError(
                f"{said}, which is empty, but {workdir} holds a part of what it held; give a new "
                "--workdir"
            )
        theirs = Manifest(mine.get("owner") or secrets.token_hex(8))
        _write_mine(workdir, theirs.owner, whole=True)
        manifests.write(remote, theirs)
    elif empty or mine.get("whole") is False:
        theirs = _restored(remote, workdir, theirs, check, said)
    elif mine.get("owner") != theirs.owner:
        raise UserError(
            f"{said}, which holds another run than {workdir}, or the same run after another "
            "machine went on with it; give an empty --workdir to go on from the mirror, or another "
            "mirror"
        )
    return theirs


def _restored(
    remote: RemoteFolder, workdir: Path, theirs: Manifest, check: Check | None, said: str
) -> Manifest:
    """Fills `workdir` from the mirror, and makes it the mirror's owner."""
    for name in theirs.files:
        parts = PurePosixPath(name).parts
        if ".." in parts or not any(fnmatchcase(parts[0], known) for known in theirs.names):
            raise UserError(f"{said}, whose {MANIFEST} names {name!r}; give another mirror")
    if check is not None and "config.json" in theirs.files:
        with tempfile.TemporaryDirectory(prefix="emcid_jax-") as folder:
            _fetch(remote, theirs, "config.json", Path(folder), said)
            try:
                check(Path(folder))
            except UserError as error:
                why = str(error).replace(folder, "it")
                raise UserError(f"{said}, which holds another run: {why} and mirror") from error
    ours = dataclasses.replace(theirs, owner=secrets.token_hex(8))
    _write_mine(workdir, ours.owner, whole=False)
    ownership.take(workdir, theirs.names, f"--workdir is {str(workdir)!r}")
    for name in snapshot.files_in(workdir).keys() - theirs.files.keys():  # Of an earlier try.
        (workdir / name).unlink()
    for name in theirs.files:
        _fetch(remote, theirs, name, workdir, said)
    manifests.write(remote, ours)
    _write_mine(workdir, ours.owner, whole=True)
    return ours


def _fetch(remote: RemoteFolder, manifest: Manifest, name: str, workdir: Path, said: str) -> None:
    """Copies a file to its place in `workdir`, if it is not there already."""
    target, wanted = workdir / name, manifest.files[name]
    if target.is_file() and file_hash(target) == wanted:
        return
    places = (name, manifest.incoming.get(name))
    with replacing(target) as temporary:
        if not any(
            place and remote.fetch(place, temporary) and file_hash(temporary) == wanted
            for place in places
        ):
            raise UserError(f"{said}, whose {name} is missing or damaged; give another mirror")


def _read_mine(workdir: Path) -> dict[str, Any]:
    """`owner`, and whether the workdir is `whole`; empty before it has a mirror."""
    path = workdir / MANIFEST
    return checksums.read_json(path, "delete it") if path.exists() else {}


def _write_mine(workdir: Path, owner: str, whole: bool) -> None:
    checksums.write_json(workdir / MANIFEST, {"owner": owner, "whole": whole})
