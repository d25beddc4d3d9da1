"""The main job with its evaluation, as two hosts run it together."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from emcid_jax.config import EditConfig
from main_job import REQUESTS, metrics
from processes import run_alone_and_together


@pytest.mark.slow
def test_two_processes_evaluate_and_report_what_one_does(
    edit_config: EditConfig, tmp_path: Path
) -> None:
    alone, together = run_alone_and_together(edit_config, tmp_path)
    parts = "aice", "accuracy", "other_forms"
    found, wanted = (
        jax.tree.leaves_with_path({part: metrics(folder)[part] for part in parts})
        for folder in (together, alone)
    )
    assert len(found) > 20
    for (place, value), (other, want) in zip(found, wanted, strict=True):
        assert place == other
        assert value == (pytest.approx(want, abs=2e-3) if isinstance(want, float) else want)
    page = (together / "report.html").read_text()
    for shown in ("Other forms of the names", f"The {len(REQUESTS)} of {len(REQUESTS)} with"):
        assert shown in page
