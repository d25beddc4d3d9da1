"""The table of docs/results.md: where labels go, and that the pages print what it holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emcid_jax.reporting.tables import COLUMNS
from studies import results_curves

ROOT = Path(__file__).parents[2]
METRICS = {name: key for key, name in COLUMNS.items()} | {"processor seconds": "processor"}


def test_labels_keep_their_order_and_their_distance() -> None:
    assert results_curves.spread([0.1, 0.9, 0.5], 0.2) == [0.1, 0.9, 0.5]
    # Three that overlap stand around their mean, 0.05; the group takes in the one that it reaches.
    assert results_curves.spread([0.0, 0.1, 0.05], 0.1) == pytest.approx([-0.05, 0.15, 0.05])
    assert results_curves.spread([0.0, 0.02, 0.08], 0.1) == pytest.approx([-1 / 15, 1 / 30, 2 / 15])


def test_a_figure_without_interval() -> None:
    text = "n,method,metric,value,low,high\n10,a,h,0.5,,\n100,a,h,0.25,0.1,0.4\n"
    found = results_curves.read(text)
    assert found == {("a", "h"): {10: (0.5, None, None), 100: (0.25, 0.1, 0.4)}}


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/choosing.md"])
def test_the_pages_print_the_table(page: str) -> None:
    figures = results_curves.read((ROOT / "docs/data/results.csv").read_text("utf8"))
    seen, columns, metric = 0, [], ""
    for line in (ROOT / page).read_text("utf8").splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        stars = [cell.strip().endswith("*") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            metric = ""
        elif len(cells) > 1 and cells[1].startswith("n = "):
            metric = METRICS[cells[0]]
            columns = [int(re.sub(r"\D", "", cell)) for cell in cells[1:]]
        elif metric and not line.startswith("|---"):
            for n, cell, star in zip(columns, cells[1:], stars[1:], strict=True):
                one = figures[cells[0], metric].get(n)
                assert (cell == "") == (one is None), line
                if one is not None:
                    digits = 0 if metric == "processor" else 2
                    assert float(cell.replace(",", "")) == round(one.value, digits), line
                    broken = figures[cells[0], "intact"][n].value == 0 if metric == "h" else False
                    assert star == broken, line
                    seen += 1
    assert seen >= 15
