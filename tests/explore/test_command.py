"""`emcid_jax explore`: mistakes are one line, and the page is served until it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from emcid_jax.explore import command
from emcid_jax.runtime.errors import UserError

EXPLORE = [sys.executable, "-m", "emcid_jax.main", "explore"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "RUN; see `emcid_jax explore --help`"),
        (["runs/a", "--prot=1"], "unrecognized arguments: --prot=1"),
        (["runs/a", "--port=x"], "invalid int value: 'x'"),
        (["runs/a", "--port=99999"], "--port is 99999; give 1 to 65535"),
        (["runs/a", "--port=0"], "RUN is 'runs/a', which is no folder"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as told:
        command.run(arguments)
    assert words in str(told.value)


def test_a_port_that_is_taken_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port is {port}, which is taken"):
            command.run([str(tmp_path), f"--port={port}"])


def test_without_the_packages_their_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"package uvicorn; pip install 'emcid_jax\[explore\]'"):
        command.run([str(tmp_path)])


def test_the_command_serves_until_it_is_interrupted(run_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    with subprocess.Popen(
        [*EXPLORE, str(run_folder), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == f"3 concepts of {run_folder}\n"
            address = process.stdout.readline().split()[1]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"3 concepts" in page.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


def test_the_door_of_the_command_line_answers_mistakes() -> None:
    done = subprocess.run(
        [*EXPLORE, "nowhere"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: RUN is 'nowhere', which is no folder; give that of a finished run\n"
    )
    done = subprocess.run(
        [*EXPLORE, "--help"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("usage: emcid_jax explore RUN [--port=PORT]")
