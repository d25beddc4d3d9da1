"""The main job with its evaluation, as two hosts run it together."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcid_jax.config import EditConfig
from main_job import REQUESTS, metrics
from tests.helpers.processes import require_alike, run_alone_and_together


@pytest.mark.slow
def test_two_processes_evaluate_and_report_what_one_does(
    edit_config: EditConfig, tmp_path: Path
) -> None:
    alone, together = run_alone_and_together(edit_config, tmp_path)
    parts = "aice", "accuracy", "other_forms"
    found, wanted = (
        {part: metrics(folder)[part] for part in parts} for folder in (together, alone)
    )
    require_alike(found, wanted, 2e-3)
    page = (together / "report.html").read_text()
    for shown in ("Other forms of the names", f"The {len(REQUESTS)} of {len(REQUESTS)} with"):
        assert shown in page
