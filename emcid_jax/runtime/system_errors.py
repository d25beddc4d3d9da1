"""What the machine answers, as one line for the user: which path or variable, and what to do."""

from __future__ import annotations

import errno
import os
import re
import sys

_FIXES = {
    errno.ENOSPC: "the disk is full; free some space and give the same command again",
    errno.EDQUOT: "your share of the disk is used up; free some space and give the command again",
    errno.EFBIG: "larger than a file may be here (see `ulimit -f`); give another place",
    errno.EACCES: "no permission; change the owner or the permissions, or give another path",
    errno.EPERM: "no permission; change the owner or the permissions, or give another path",
    errno.EROFS: "lies on a read-only file system; give another path",
    errno.ENOENT: "no such file or folder; see whether it was moved, or give another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; give another path",
    errno.EISDIR: "is a folder where a file is expected; give another path",
    errno.EEXIST: "is in the way; move it, or give another path",
    errno.ENOTEMPTY: "another program wrote into this folder meanwhile; give another path",
    errno.ENAMETOOLONG: "longer than a name may be on this file system; give a shorter one",
    errno.ELOOP: "links that lead in a circle; give another path",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n`)",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.EIO: "the disk does not answer; see whether it is damaged or unplugged",
    errno.ESTALE: "the network file system lost this file; give the same command again",
    errno.ENOMEM: "not enough memory; close other programs",
}
_NAMELESS = frozenset(
    (
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE,
        errno.EIO, errno.ESTALE, errno.ENOMEM,
    )
)  # fmt: skip
"""Errors that come without a path, from a file that is open, and cannot be a mistake in a call."""
_RUST = re.compile(r"\(os error (\d+)\)")
_TENSORSTORE = re.compile(r"OS error (\d+)[:\]]|os_error_code='(\d+)'")
_NO_MEMORY = "RESOURCE_EXHAUSTED"
_SMALLER = (
    "use smaller batches (e.g. --config.stage_one.concept_batch=1, --config.moments.batch=16), "
    "fewer devices, or a machine with more"
)


def explained(error: BaseException, place: str) -> str | None:
    """One line for what the machine refused; None for anything else, e.g. a mistake in the code.

    Args:
        error: what was raised.
        place: what to name where the system does not say which file it was, e.g. the workdir.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or _NO_MEMORY in str(cause):
            return f"not enough memory ({_first_line(cause)}); {_SMALLER}"
        code, path = _system_error(cause)
        if code in _FIXES and (path or code in _NAMELESS):
            return f"{path or place}: {_FIXES[code]}"
        if code and path:
            return f"{path}: {os.strerror(code)}; see whether this is the path you mean"
        cause = cause.__cause__
    return _platform(error)


def _system_error(error: BaseException) -> tuple[int, str]:
    """Number and path of what the system answered; 0 if it was not the system."""
    if isinstance(error, OSError):
        path = error.filename if error.filename is not None else ""
        return error.errno or 0, os.fsdecode(path) if isinstance(path, str | bytes) else ""
    text = str(error)
    found = _RUST.search(text) or _TENSORSTORE.search(text)
    return (int(found[found.lastindex or 0]) if found else 0), ""


def _platform(error: BaseException) -> str | None:
    """A line if JAX cannot have the devices that are asked for."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if "jax" not in sys.modules or not isinstance(error, RuntimeError | AssertionError):
        return None
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as reason:
        name = f"JAX_PLATFORMS is {asked!r}" if asked else "JAX finds no device"
        said = _first_line(reason)
        return (
            f"{name}, which this machine or installation lacks{f' ({said})' if said else ''}; "
            "set JAX_PLATFORMS=cpu, or unset it to take what is there"
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
