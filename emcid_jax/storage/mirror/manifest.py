"""What a mirror says that it holds: files by their content, and whose they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.storage.mirror.remote_folder import RemoteFolder

MANIFEST = ".emcid_jax.mirror.json"
"""At the mirror, this; in a workdir, which mirror goes with it."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a mirror holds."""

    owner: str
    """Which workdir it is of, a random name."""
    names: tuple[str, ...] = ()
    """What the program calls its own there, see `ownership`."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 (hex) of every file by its name."""
    incoming: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Those that may still wait elsewhere, and where."""
    gone: tuple[str, ...] = ()
    """Files that may still be there, though they are no more in the workdir."""


def read(remote: RemoteFolder) -> Manifest | None:
    """The mirror's manifest; None if it has none. UserError if it is damaged."""
    content = remote.read(MANIFEST)
    if content is None:
        return None
    if not checksums.is_intact(content):
        raise UserError(f"{remote.url}/{MANIFEST}: damaged; give another mirror")
    found = json.loads(content)
    del found["checksum"]
    names, gone = tuple(found.pop("names")), tuple(found.pop("gone"))
    return Manifest(**found, names=names, gone=gone)


def write(remote: RemoteFolder, manifest: Manifest) -> None:
    """Makes `manifest` the mirror's; whenever the process dies it is that or the one before."""
    fields = dataclasses.asdict(manifest) | {"checksum": checksums.UNSEALED}
    remote.put(checksums.sealed(json.dumps(fields, indent=1).encode()), f"{MANIFEST}.new")
    remote.move(f"{MANIFEST}.new", MANIFEST)
