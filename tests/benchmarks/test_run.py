from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_smoke_run_finds_both_sides_equal(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.run", "--quick", f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    checks = [check for row in results["rows"] for check in row["checks"]]
    assert len(results["rows"]) == 8
    assert len(checks) == 9
    assert all(check["passed"] for check in checks)
    assert results["machine"]["cpu"]
