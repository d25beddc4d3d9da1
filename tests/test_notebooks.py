"""The notebooks: their cells run from top to bottom in one process, and show what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
RUN = """
import json, sys, warnings
import numpy as np

warnings.simplefilter("error")
cells, wanted = map(json.loads, sys.argv[1:3])
names = {}
for place, source in cells:
    exec(compile(source, place, "exec"), names)
    names["plt"].close("all")
np.savez(sys.argv[3], **{name: eval(text, names) for name, text in wanted.items()})
"""


def cells(name: str) -> list[dict[str, Any]]:
    """The notebook's cells, in order."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf8"))["cells"]


def run(name: str, folder: Path, **wanted: str) -> dict[str, np.ndarray]:
    """What these expressions are for a reader at the end, by name.

    In a process of its own on one device, as a reader's: eight virtual devices on two cores would
    do the same in half as much time again.
    """
    code = [
        (f"{name}, cell {number}", "".join(cell["source"]))
        for number, cell in enumerate(cells(name))
        if cell["cell_type"] == "code"
    ]
    found = folder / "found.npz"
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(code), json.dumps(wanted), str(found)],
        cwd=FOLDER.parent,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "MPLBACKEND": "agg", "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(found) as file:
        return dict(file)


def test_the_quickstart_edits(tmp_path: Path) -> None:
    found = run(
        "quickstart",
        tmp_path,
        distances="[report.distance_before, report.distance_after]",
        before="before",
        after="after",
        written="str(folder)",
    )
    distance_before, distance_after = found["distances"]
    assert distance_after < 0.1 * distance_before
    differ = np.abs(found["before"].astype(float) - found["after"]).mean(axis=(1, 2, 3))
    *edited, other = differ
    assert min(edited) > 2 * other
    assert list(Path(str(found["written"])).glob("text_encoder/model.safetensors"))


def test_the_look_inside_an_edit(tmp_path: Path) -> None:
    found = run(
        "inside_an_edit",
        tmp_path,
        subject="tokens[begin:end]",
        last="end - 1",
        change="told[prompt]",
        elsewhere="told[other]",
        threshold="gates[place].threshold",
        opened="opened",
        scores="scores",
    )
    last, change, opened = int(found["last"]), found["change"], found["opened"]
    assert "".join(found["subject"]) == "tench"
    assert change[:, :last].max() < 0.3 < change[-1, last]  # Causal: the words before it stay.
    assert change[-1, last] > 2 * found["elsewhere"][-1].max()
    # The gate's score and how far it is open are two ways to say the same.
    np.testing.assert_array_equal(opened > 0.99, found["scores"] >= found["threshold"])
    assert (opened > 0.99).nonzero()[0].tolist() == [last]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_outputs_are_stored(path: Path) -> None:
    code = [cell for cell in cells(path.stem) if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
