"""Files are whole, readable by whom the umask says, and nothing is left next to them."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import pytest

from emcid_jax.models.weights.params import write_params
from emcid_jax.runtime.files import replacing, write_atomically


def test_a_written_file_replaces_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_the_file_is_the_old_one_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.match(".*.tmp")  # what `workdir` sweeps after a kill
    assert path.read_bytes() == b"new"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    path.mkdir()
    with pytest.raises(OSError):
        write_atomically(path, b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_mode_is_the_usual_one(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "bytes", b"content")
        write_params(tmp_path / "weights", {"out": {"bias": jnp.zeros(2)}})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
