"""One round of copying: a snapshot of the workdir, then the files that differ, then the manifest.

A manifest that is there is a state that was there: files that replace others wait beside them until
it names them, and files that are gone are removed only after it has ceased to name them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from emcid_jax.storage import ownership
from emcid_jax.storage.mirror import manifest as manifests
from emcid_jax.storage.mirror import snapshot
from emcid_jax.storage.mirror.manifest import Manifest
from emcid_jax.storage.mirror.remote_folder import RemoteFolder
from emcid_jax.storage.mirror.snapshot import Hashes

INCOMING = ".emcid_jax.incoming"
"""Folder at the mirror: files that wait for the manifest that names them."""


class Known(NamedTuple):
    """What the copying process knows, to do nothing twice. It fills the dictionaries."""

    hashes: Hashes
    sent: dict[str, str]
    """By the place at the mirror: SHA-256 of what was sent since the last manifest; empty: a part
    of it."""


class LostError(Exception):
    """The mirror is another workdir's now."""


def copied(remote: RemoteFolder, workdir: Path, manifest: Manifest, known: Known) -> Manifest:
    """Brings the mirror to the state of `workdir` at this moment; gives its new manifest.

    Cut short anywhere, the mirror is that of `manifest` or of the new one. ChangedError if a file
    was replaced meanwhile, LostError if the mirror is no longer this workdir's.
    """
    manifest = _settled(remote, manifest)
    names, taken = ownership.names_in(workdir), snapshot.take(workdir, known.hashes)
    files, incoming = {}, {}
    for name in sorted(taken.files, key=lambda name: taken.files[name].time):
        files[name] = snapshot.hash_in(taken, workdir, name, known.hashes)
        if manifest.files.get(name) == files[name]:
            continue
        place = name
        if name in manifest.files:
            place = incoming[name] = _waiting(manifest.owner, name)
        if known.sent.get(place) != files[name]:
            if not known.sent:
                owned(remote, manifest)
            with snapshot.unchanged(taken, workdir, name):
                known.sent[place] = ""
                remote.put(taken.contents.get(name, workdir / name), place)
            known.sent[place] = files[name]
    if files == manifest.files and names == manifest.names:
        return manifest
    left = (manifest.files.keys() | known.sent.keys()) - files.keys() - set(incoming.values())
    new = Manifest(manifest.owner, names, files, incoming, tuple(sorted(left)))
    owned(remote, manifest)
    manifests.write(remote, new)
    known.sent.clear()
    return _settled(remote, new)


def _settled(remote: RemoteFolder, manifest: Manifest) -> Manifest:
    """Brings the files of a written manifest to their places, and removes what it gave up."""
    for name, place in manifest.incoming.items():
        remote.move(place, name)
    for name in manifest.gone:
        remote.remove(name)
    return dataclasses.replace(manifest, incoming={}, gone=())


def owned(remote: RemoteFolder, manifest: Manifest) -> Manifest:
    """The manifest as it is now. LostError if it is another workdir's.

    Not a lock, which object stores lack: a machine that was thought dead stops at its next round.
    """
    theirs = manifests.read(remote)
    if theirs is None or theirs.owner != manifest.owner:
        raise LostError(f"{remote.url} was removed, or another machine went on from it")
    return theirs


def _waiting(owner: str, name: str) -> str:
    """Where a file waits; no name of a user's, which drivers may take for a pattern."""
    return f"{INCOMING}/{owner}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
