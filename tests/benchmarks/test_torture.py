"""A small seeded share of the torture, and what counts its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture import verdicts
from benchmarks.torture.child import Ended
from benchmarks.torture.verdicts import Row, of_run

ROOT = Path(__file__).parents[2]
RIGHT = Ended(0, "", "", 1.0, 10**8, False, 0)


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (RIGHT, "right"),
        (RIGHT._replace(code=2, err="error: x is 1; give 2\n"), "clear error"),
        (RIGHT._replace(code=2, err=""), "traceback"),
        (RIGHT._replace(code=2, err="error: \x1b[31m\n"), "traceback"),
        (RIGHT._replace(code=1, err="Traceback (most recent call last):\n"), "traceback"),
        (RIGHT._replace(code=-11), "traceback"),
        (RIGHT._replace(code=-9, hung=True), "hang"),
        (RIGHT._replace(memory=2**31 + 1), "memory"),
    ],
)
def test_every_end_is_counted(ended: Ended, verdict: str) -> None:
    assert of_run(ended)[0] == verdict


def test_rows_survive_a_kill_and_are_counted_once(tmp_path: Path) -> None:
    row = Row("bank add", 3, "wrong", "\ud800")
    verdicts.write(tmp_path / "rows", row)
    with (tmp_path / "rows").open("ab") as file:
        file.write(b'{"kind": "ba')  # cut by a kill
    verdicts.write(tmp_path / "rows", row)
    verdicts.write(tmp_path / "rows", Row("bank add", 4, "right"))
    rows = verdicts.read([tmp_path / "rows"])
    assert rows == [row, Row("bank add", 4, "right", "")]
    assert verdicts.table(rows).splitlines()[-1].split() == [
        "all",
        "2",
        "1",
        "0",
        "1",
        "0",
        "0",
        "0",
    ]


def test_a_share_of_it_fails_nowhere(tmp_path: Path) -> None:
    kinds = ["edit_file apply", "edit_file undo", "apply and undo at once", "manifests", "weights"]
    kinds += ["edit file", "second moments", "captions and names", "concept bank", "overrides"]
    options = ["--kills=10", "--inputs=200", f"--workdir={tmp_path / 'w'}", "--kinds", *kinds]
    output = f"--output={tmp_path / 'table.json'}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture", "kills", "inputs", output, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = json.loads((tmp_path / "table.json").read_text())["counts"]
    assert counts["edit_file apply"]["right"] == 4
    assert sum(counts["manifests"].values()) == 64
    assert counts["weights"]["clear error"] > 10
