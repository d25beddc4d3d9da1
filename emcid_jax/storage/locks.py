"""Locks between processes, which the system lets go when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import require_plain

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What file systems without locks answer."""


@contextlib.contextmanager
def held(lock: Path, what: str, *, wait: bool) -> Iterator[None]:
    """Holds the lock file `lock` (made if there is none) for this process.

    Args:
        lock: an empty file that stays; its folder must be there.
        what: what the lock is for, as the user named it, e.g. `--workdir is 'runs/1'`.
        wait: for another holder to let go; else it is an error.

    Raises:
        UserError: another process holds the lock, or this one for something else, `lock` is a link
            or no plain file, or the file system has no locks.
        OSError: the lock file cannot be made.
    """
    require_plain(lock)
    holder = FileLock(lock, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        holder.acquire()
    except Timeout:
        raise UserError(f"{what}, which another run is using; wait for it") from None
    except RuntimeError:  # filelock's answer where waiting would never end.
        raise UserError(
            f"{what}, which this run uses for something else already; give it a folder of its own"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            f"{what}, but this file system has no locks ({error.strerror}), so nothing would keep "
            "two runs apart; give a folder on another disk, e.g. a local one, and copy it later"
        ) from error
    try:
        yield
    finally:
        holder.release()


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Holds `folder` itself for this process, waiting for others; no file is left in it.

    Where the system or the file system has no such locks the block runs all the same, after a
    warning. OSError if the folder cannot be read.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            logging.warning(
                "%s: this file system has no locks (%s); do not change this folder from two "
                "processes at once",
                folder,
                error.strerror,
            )
        yield
    finally:
        os.close(handle)
