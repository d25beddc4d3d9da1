"""The user's own cache folder: compiled programs, converted checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from emcid_jax.runtime.errors import UserError


def cache_folder(name: str) -> Path:
    """The folder `name` in this program's part of the user's cache; made if it is not there.

    It is the user's own: what lies in it gets executed (compiled programs).

    Raises:
        UserError: there is no home folder, or the cache cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "emcid_jax" / name
    said = "XDG_CACHE_HOME" if os.environ.get("XDG_CACHE_HOME") else "HOME"
    try:
        if not folder.is_absolute():
            raise OSError(0, "it gives no absolute path")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(0, "not writable")
    except OSError as error:
        raise UserError(
            f"{said} is {os.environ.get(said)!r}, so the cache would be {str(folder)!r}, which "
            f"cannot be used ({error.strerror}); set XDG_CACHE_HOME to a folder of yours, or give "
            "--config.run.compile_cache=False if that is what is kept there"
        ) from error
    return folder
