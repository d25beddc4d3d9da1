"""Config files by name, of a checkout and of an installed wheel; files and modules as they are."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from emcid_jax.config import RunConfig, bundled
from emcid_jax.main import TASKS
from emcid_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_name_is_the_bundled_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bank").mkdir()  # A folder is no config.
    for path in (ROOT / "configs").glob("*.py"):
        assert bundled.find(path.stem) == str(path)
    (tmp_path / "quickstart").write_text("mine")
    assert bundled.find("quickstart") == "quickstart"


def test_files_and_modules_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("nowhere.py", "runs/mine.py", "/x/y.py:argument", "../sweep.py"):
        assert bundled.find(name) == name
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "sweep.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert bundled.find("lab.sweep") == str(tmp_path / "lab" / "sweep.py")
    with pytest.raises(UserError, match=r"'broken\.x', which cannot be imported: division by zero"):
        bundled.find("broken.x")


def test_a_path_of_the_checkout_is_told_the_name_where_there_is_no_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"configs/aice\.py', which is not there; --config=aice is"):
        bundled.find("configs/aice.py")
    monkeypatch.chdir(ROOT)
    assert bundled.find("configs/aice.py") == "configs/aice.py"


@pytest.mark.parametrize("name", ["quickstrat", "lab.nothing", "READTHEM.md"])
def test_a_word_that_means_nothing_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=r"no file, no module, and none of .*: ablate, aice, .*tra"):
        bundled.find(name)


def test_every_config_gives_the_settings_of_a_task() -> None:
    for name in bundled.names():
        values = runpy.run_path(bundled.find(name))["get_config"]().to_dict()
        assert values["task"] in TASKS
        assert values.get("run", {}).keys() <= {one.name for one in fields(RunConfig)}


def test_every_config_says_in_a_sentence_what_it_does() -> None:
    lines = bundled.table().splitlines()
    assert [line.split()[0] for line in lines] == list(bundled.names())
    assert all(len(line.split()) > 4 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("given", ["--config=quickstart", "--config quickstart"])
def test_the_command_takes_names_anywhere(given: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emcid_jax.main", *given.split()]
    done = subprocess.run(
        [*command, "--config.stage_one.steps=0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: config.stage_one.steps is 0; it must be >= 1\n"
    assert not list(tmp_path.iterdir())
