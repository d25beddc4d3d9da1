"""The notebooks: their cells run from top to bottom in one process, and show what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"


def cells(name: str) -> list[dict[str, Any]]:
    """The notebook's cells, in order."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf8"))["cells"]


def run(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """What a reader has at the end: the names that the cells define."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
            names["plt"].close("all")
    return names


def test_the_quickstart_edits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run("quickstart", monkeypatch, tmp_path)
    assert names["report"].distance_after < 0.1 * names["report"].distance_before
    differ = np.abs(names["before"].astype(float) - names["after"]).mean(axis=(1, 2, 3))
    *edited, other = differ
    assert min(edited) > 2 * other
    assert list(names["folder"].glob("text_encoder/model.safetensors"))


def test_the_look_inside_an_edit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run("inside_an_edit", monkeypatch, tmp_path)
    last = names["end"] - 1
    assert "".join(names["tokens"][names["begin"] : names["end"]]) == "tench"
    change = names["told"][names["prompt"]]
    assert change[:, :last].max() < 0.3 < change[-1, last]  # Causal: the words before it stay.
    assert change[-1, last] > 2 * names["told"][names["other"]][-1].max()
    # The gate's score and how far it is open are two ways to say the same.
    threshold = names["gates"][names["place"]].threshold
    np.testing.assert_array_equal(names["opened"] > 0.99, names["scores"] >= threshold)
    assert (names["opened"] > 0.99).nonzero()[0].tolist() == [last]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_outputs_are_stored(path: Path) -> None:
    code = [cell for cell in cells(path.stem) if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
