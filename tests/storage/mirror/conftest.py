"""Workdirs of a few small files, and mirrors on fsspec's memory and on the disk."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from emcid_jax.storage import ownership

NAMES = ("config.json", "bank", "log.jsonl", "edit-*")


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a mirror that is not there yet."""
    kinds = {"memory": f"memory://{uuid.uuid4().hex}/run", "file": f"file://{tmp_path}/far/run"}
    return kinds[request.param]


@pytest.fixture
def new(tmp_path: Path) -> Callable[[], Path]:
    """Makes an empty workdir, of which the names are taken."""

    def make() -> Path:
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        ownership.take(folder, NAMES, "--workdir")
        return folder

    return make


@pytest.fixture
def write() -> Callable[[Path, Mapping[str, bytes]], None]:
    """Gives a workdir these files and no others, each by one rename where it is new."""

    def to(workdir: Path, state: Mapping[str, bytes]) -> None:
        for name, content in state.items():
            path = workdir / name
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(".part").write_bytes(content)
                path.with_name(".part").replace(path)
        for name in read_files(workdir).keys() - state.keys():
            (workdir / name).unlink()

    return to


@pytest.fixture
def read() -> Callable[[Path], dict[str, bytes]]:
    """What lies in a folder; hidden files are left out."""
    return read_files


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
