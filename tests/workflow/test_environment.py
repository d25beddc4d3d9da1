"""What a run says of the code that it ran."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emcid_jax.workflow.environment import _git_commit


def git(folder: Path, *command: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", "-C", str(folder), *name, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package that git tracks at the top of its repository."""
    (tmp_path / "mine" / "package").mkdir(parents=True)
    (tmp_path / "mine" / "package" / "code.py").touch()
    git(tmp_path / "mine", "init", "-q")
    git(tmp_path / "mine", "add", ".")
    git(tmp_path / "mine", "commit", "-q", "-m", "first")
    return tmp_path / "mine"


def test_the_commit_is_that_of_the_code(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert _git_commit(checkout / "package") == head
    (checkout / "package" / "code.py").write_text("x = 1")
    assert _git_commit(checkout / "package") == f"{head}-dirty"


def test_somebody_elses_commit_is_not_taken(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv" / "lib" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").touch()
    assert _git_commit(installed) == "unknown"  # In a user's own project.
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "even tracked there")
    assert _git_commit(installed) == "unknown"
    (checkout / "copied").mkdir()
    assert _git_commit(checkout / "copied") == "unknown"  # At the top, but not tracked.
    (tmp_path / "nowhere").mkdir()
    assert _git_commit(tmp_path / "nowhere") == "unknown"
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))  # As in a hook of git.
    assert _git_commit(tmp_path / "nowhere") == "unknown"
