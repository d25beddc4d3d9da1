"""A folder on any file system that fsspec knows, e.g. in a bucket. The only file that knows fsspec.

Names are paths below the folder, with slashes. What the file system answers is raised as it comes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from emcid_jax.runtime.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class RemoteFolder:
    """Where it is, and how to get there."""

    url: str
    system: Any
    """fsspec's file system."""
    root: str

    def holds_anything(self) -> bool:
        """Whether a file or folder lies there."""
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self.root, detail=False)
        except FileNotFoundError:
            return False
        return any(name.rstrip("/") != self.root for name in found)

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it is not there."""
        self.system.invalidate_cache()
        try:
            return self.system.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def fetch(self, name: str, target: Path) -> bool:
        """Copies a file to `target`, which is replaced. False if it is not there."""
        try:
            self.system.get_file(self._path(name), str(target))
        except FileNotFoundError:
            return False
        return True

    def put(self, source: Path | bytes, name: str) -> None:
        """Copies a file, or what would be in it, there. Cut short, it may leave a part."""
        self._make_room(name)
        if isinstance(source, bytes):
            self.system.pipe_file(self._path(name), source)
        else:
            self.system.put_file(str(source), self._path(name))

    def move(self, name: str, target: str) -> None:
        """Moves a file, in place of another. One that is not there has been moved before."""
        self._make_room(target)
        try:
            self.system.mv(self._path(name), self._path(target))
        except FileNotFoundError:
            if self.system.exists(self._path(name)):
                raise

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        try:
            self.system.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _make_room(self, name: str) -> None:
        """Makes the folders above; object stores have none, and would be asked for the bucket."""
        if not self.system.async_impl:
            self.system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)


def open_remote(url: str, said: str) -> RemoteFolder:
    """The folder at `url`, which need not be there yet.

    Args:
        url: as fsspec takes it, e.g. `gs://bucket/run`.
        said: how the user named it, for messages.

    Raises:
        UserError: fsspec or the driver of the URL's kind is missing, or there is no such kind.
    """
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"{said}, whose driver is missing ({error}); "
            'pip install "emcid_jax[mirror]", for gs:// [mirror-gcs], for s3:// [mirror-s3]'
        ) from error
    except ValueError as error:
        raise UserError(f"{said}: {error}; give a URL such as gs://bucket/run") from error
    return RemoteFolder(url, system, root.rstrip("/"))


def reason(error: Exception) -> str:
    """What a driver said, in one line."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said[:200]}"
