"""A workdir kept at a second place while a run lasts; one thread copies."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from emcid_jax.storage.files import file_hash
from emcid_jax.storage.mirror import snapshot
from emcid_jax.storage.mirror.copying import Known, LostError, copied, owned
from emcid_jax.storage.mirror.joining import Check, begin
from emcid_jax.storage.mirror.manifest import Manifest
from emcid_jax.storage.mirror.remote_folder import RemoteFolder, reason
from emcid_jax.storage.mirror.snapshot import ChangedError

PAUSE = 2.0
"""Seconds between two looks at the workdir; after an error twice as long as before."""
LONGEST_PAUSE = 60.0
TRIES = 5
"""Errors in a row after which the end of a run no longer waits: half a minute in all."""


@contextlib.contextmanager
def kept(url: str, workdir: Path, check: Check | None = None) -> Iterator[None]:
    """Copies what is finished in `workdir` to the mirror while the block runs, and at its end.

    `workdir` is this process's, and its names are taken, see `ownership.take`. Errors of the mirror
    are logged and tried again; they end nothing. See `begin` for what is raised before the block.
    """
    remote, manifest = begin(url, workdir, check)
    end = threading.Event()
    thread = threading.Thread(
        target=_copy_on, args=(remote, workdir, manifest, end), name="mirror", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _copy_on(remote: RemoteFolder, workdir: Path, manifest: Manifest, end: threading.Event) -> None:
    """Copies until `end` is set and all is copied; what the thread does."""
    known, pause, errors = Known({}, {}), PAUSE, 0
    while True:
        last = end.is_set()  # What is copied from here on is all that there will be.
        try:
            if errors:  # Whether the manifest was written before is not known.
                manifest = owned(remote, manifest)
            manifest = copied(remote, workdir, manifest, known)
            if last:
                return
            pause, errors = PAUSE, 0
        except ChangedError:
            pass
        except LostError as error:
            logging.error("config.run.mirror: %s is no longer kept: %s", workdir, error)
            return
        except Exception as error:
            errors += 1
            logging.warning("config.run.mirror is %r: %s", remote.url, reason(error))
            if last and errors >= TRIES:
                missing = _missing(workdir, manifest)
                logging.error(
                    "config.run.mirror is %r, which lacks %d files of %s (%s ...); give the same "
                    "command again",
                    *(remote.url, len(missing), workdir, ", ".join(missing[:3])),
                )
                return
            pause = min(2 * pause, LONGEST_PAUSE)
        if last:
            time.sleep(pause)
        else:
            end.wait(pause)


def _missing(workdir: Path, manifest: Manifest) -> list[str]:
    """Files of `workdir` that the manifest does not have as they are."""
    hashes = {name: file_hash(workdir / name) for name in snapshot.files_in(workdir)}
    return [name for name, found in hashes.items() if manifest.files.get(name) != found]
