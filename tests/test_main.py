"""The command line: help without JAX, and a line with exit code 2 for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emcid_jax.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_the_settings_and_imports_no_accelerator() -> None:
    script = (
        "import sys; sys.argv = ['main', '--help']\n"
        "from emcid_jax import main\n"
        "try: main.run()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'jax', 'numpy', 'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "config.stage_two.moment_weight = 4000.0" in done.stdout
    assert "--workdir" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is missing", "configs/quickstart.py"]),
        (["--config=nowhere.py"], ["--config", "nowhere.py", "No such file"]),
        (["--config=nowhere.py", "--config.run.progress=False"], ["nowhere.py"]),
        (
            [QUICKSTART, "--config.stage_one.stpes=3"],
            ["config.stage_one.stpes", "unknown", "steps"],
        ),
        ([QUICKSTART, "--config.stage_none.steps=3"], ["config.stage_none.steps", "unknown"]),
        ([QUICKSTART, "--config.stage_one.steps=many"], ["config.stage_one.steps", "many"]),
        ([QUICKSTART, "--config.task=paint"], ["config.task", "'paint'", "edit"]),
        ([QUICKSTART, "--wrokdir=x"], ["wrokdir", "workdir"]),
        ([QUICKSTART, "x"], ["'x'", "--config.FIELD=VALUE"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert done.stdout == ""


def test_a_bad_setting_leaves_no_workdir(tmp_path: Path) -> None:
    done = command(QUICKSTART, "--config.stage_one.steps=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: config.stage_one.steps is 0; it must be >= 1\n"
    assert list(tmp_path.iterdir()) == []
