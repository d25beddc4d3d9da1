"""The command line: help without JAX, and a line with exit code 2 for every mistake."""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from emcid_jax import main
from emcid_jax.runtime import terminal
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.user_cache import cache_folder

ROOT = Path(__file__).parents[1]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
BASE = {"requests": {"path": "x.json"}}


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
    assert "config.stage_two.preservation_weight = 4000.0" in done.stdout
    assert "--workdir" in done.stdout


def test_every_task_says_where_to_look() -> None:
    say_it_themselves = {"bank", "edit_file", "sample", "convert", "plan", "text_report"}
    for name in main.TASKS:
        task = importlib.import_module(f"emcid_jax.tasks.{name}")
        assert hasattr(task, "LOOK") is (name not in say_it_themselves), name
        if hasattr(task, "LOOK"):
            assert any(fnmatch.fnmatchcase(task.LOOK, written) for written in task.WRITES), name
        else:
            assert task.show is terminal.show


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is missing", "--config=quickstart"]),
        (["--config=nowhere.py"], ["--config", "nowhere.py", "No such file"]),
        (["--config=nowhere.py", "--config.run.progress=False"], ["nowhere.py"]),
        (
            [QUICKSTART, "--config.stage_one.stpes=3"],
            ["config.stage_one.stpes", "unknown", "steps"],
        ),
        ([QUICKSTART, "--config.stage_none.steps=3"], ["config.stage_none.steps", "unknown"]),
        ([QUICKSTART, "--config.stage_one.steps=many"], ["config.stage_one.steps", "many"]),
        ([QUICKSTART, "--config.task=paint"], ["config.task", "'paint'", "edit"]),
        ([QUICKSTART, "--config.task=layer_pairs"], ["config.task", "now called 'layer_ranges'"]),
        (
            ["--config=bank", "--config.bank=x", "--config.run.distributed=True"],
            ["config.run.distributed is True, but task bank", "one process", "ablate, evaluate"],
        ),
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


@pytest.mark.parametrize(
    ("values", "devices", "cached"),
    [
        ({"task": "trace", "names": ("a", "b"), "run": {"cpu_devices": 3}}, 3, True),
        ({"task": "ablate", "base": BASE | {"run": {"cpu_devices": 3}}}, 3, True),
        ({"task": "bank", "bank": "x", "base": {}, "run": {"cpu_devices": 3}}, 3, True),
        ({"task": "convert"}, 1, False),
    ],
)
def test_how_a_run_proceeds(values: dict[str, Any], devices: int, cached: bool) -> None:
    run = main._read_task(values)[2]
    assert (run.cpu_devices, run.compile_cache) == (devices, cached)


def test_a_bad_setting_leaves_no_workdir(tmp_path: Path) -> None:
    done = command(QUICKSTART, "--config.stage_one.steps=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: config.stage_one.steps is 0; it must be >= 1\n"
    assert list(tmp_path.iterdir()) == []


HOSTILE = "red\x1b[31m \u202e"
SEEN = r"red\x1b[31m \u202e"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            [f"--config={ROOT / 'README.md'}"],
            ["README.md", "no working config file", "SyntaxError"],
        ),
        ([f"--config={ROOT}"], [str(ROOT), "Is a directory"]),
        ([QUICKSTART, "--config.stage_two.layers[99]=5"], ["config.stage_two.layers[99]", "'5'"]),
        ([QUICKSTART, "--config.stage_two.layers=b'x'"], ["layers", "b'x'", "(1, 2)"]),
        ([QUICKSTART, "--config.stage_two.layers={1, 2}"], ["layers", "{1, 2}", "(1, 2)"]),
        ([QUICKSTART, "--config.stage_two.layers=" + "1+" * 9999 + "1"], ["layers", "'1+1"]),
        (
            [QUICKSTART, "--config.stage_two.moment_weight=3"],
            ["config.stage_two.moment_weight is now called config.stage_two.preservation_weight"],
        ),
        (
            [QUICKSTART, "--config.stage_two.solve=device"],
            ["config.stage_two.solve is now called config.stage_two.solve_on"],
        ),
        ([QUICKSTART, f"--config.task={HOSTILE}"], [SEEN.replace("\\x", r"\x")]),
        ([QUICKSTART, f"--{HOSTILE}=1"], [SEEN]),
    ],
)
def test_no_argument_is_a_traceback(
    arguments: list[str], words: list[str], refused: Callable[[list[str]], str]
) -> None:
    line = refused(arguments)
    assert len(line) < 600
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1", "has no get_config()"),
        ("def get_config():\n    return {}", "gives dict; return an ml_collections.ConfigDict"),
        ("def get_config():\n    return\n", "gives NoneType"),
        ("\n\ndef get_config():\n    return 1 / 0", "line 4: ZeroDivisionError: division by zero"),
        ("\n\ndef get_config():\n    return int('x')", "line 4: ValueError: invalid literal"),
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "from emcid_jax.config import EditConfig, StageTwoConfig\n"
            "def get_config():\n    return EditConfig(stage_two=StageTwoConfig(solve='device'))",
            "unexpected keyword argument 'solve'; 'solve' is now called 'solve_on'",
        ),
        (
            "from emcid_jax.config import EditConfig, to_config_dict\n"
            "def get_config():\n    c = to_config_dict(EditConfig())\n"
            "    c.stage_two.moment_weight *= 2\n    return c",
            "'moment_weight' is now called 'preservation_weight'",
        ),
        ("def get_config() return", "line 1: SyntaxError: expected ':'"),
        ("\0", "source code string cannot contain null bytes"),
    ],
)
def test_a_config_file_that_does_not_work(
    content: str, words: str, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(content)
    line = refused([f"--config={file}"])
    assert line.startswith(f"error: --config is {str(file)!r}, wh")
    assert words in line


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], str]:
    """What main says to arguments that it does not take: one line."""

    def run(arguments: list[str]) -> str:
        flags.FLAGS.unparse_flags()
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        monkeypatch.setattr(sys, "argv", ["main", *arguments])  # ml_collections looks there, too
        try:
            code = main.main(main._parse_flags(sys.argv))
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert code == 2
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.isprintable()
        return line

    return run


def test_a_terminal_without_letters(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emcid_jax.main", QUICKSTART, "--config.task=Émile 猫"],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: config.task is '")
    assert done.stderr.isascii()


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(platform: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emcid_jax.main", QUICKSTART, f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": platform, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS is {platform!r}, which this machine")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HOME": "not/absolute"}, "HOME is 'not/absolute'"),
        ({"HOME": "/proc"}, "HOME is '/proc'"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "XDG_CACHE_HOME is '/dev/null'"),
    ],
)
def test_no_home(
    variables: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)):
        cache_folder("xla")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "code", "told"),
    [("> /dev/full", 2, "error: <stdout>: the disk is full"), ("--bad 2> /dev/full", 2, "")],
)
def test_output_that_nobody_takes(where: str, code: int, told: str) -> None:
    arguments = "" if "bad" in where else "--help"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m emcid_jax.main {arguments} {where}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == bool(told)


def test_whoever_reads_us_may_stop_reading() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m emcid_jax.main --help | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""
