"""Files that version 0.1 wrote (`tests/data/version_0_1`) are read, and say what they said then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax.editing.bank.concepts import open_bank
from emcid_jax.editing.export.edit_file import read_edit
from emcid_jax.editing.moments.second_moment import read_moments, write_moments
from emcid_jax.runtime.errors import UserError

DATA = Path(__file__).parents[1] / "data" / "version_0_1"
VALUES: dict[str, Any] = json.loads((DATA / "values.json").read_text())


@pytest.mark.parametrize("packed", [True, False])
def test_a_bank(packed: bool, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "bank", tmp_path / "bank"))
    if not packed:
        (folder / "memories.pack").unlink()
    found = open_bank(folder)
    assert {(c.request.source, c.request.task, c.strength) for c in found.concepts} == {
        ("tench", "update", 0.5),
        ("Claude Monet", "erase", 1.0),
        ("nurse", "debias", 1.0),
    }
    assert found.records.keys() == VALUES["memories"].keys()
    for name, values in VALUES["memories"].items():
        record = found.records[name]
        assert np.concatenate(record.memory).tolist() == values
        assert record.details == {"seconds": 1.5, "note": "é"}


def test_an_edit() -> None:
    content, ledger = read_edit(DATA / "edit.safetensors")
    assert [stored.form for stored in content.layers] == ["dense", "factors"]
    assert {str(k): d.tolist() for k, d in content.deltas().items()} == VALUES["deltas"]
    assert [request["source"] for request in ledger["requests"]] == [
        c.request.source for c in open_bank(DATA / "bank").concepts
    ]


def test_moments_have_no_checksum_which_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    found = read_moments(DATA / "second_moments.safetensors")
    assert {str(k): m.tolist() for k, m in found.moments.items()} == VALUES["moments"]
    assert (found.count, found.provenance.captions) == (40, 7)
    assert "second_moments.safetensors: of version 0.1, has no checksum" in caplog.text
    caplog.clear()
    write_moments(tmp_path / "new.safetensors", found)
    assert read_moments(tmp_path / "new.safetensors").provenance == found.provenance
    assert not caplog.text


def test_a_damaged_matrix_without_checksum_is_found_by_its_asymmetry(tmp_path: Path) -> None:
    content = (DATA / "second_moments.safetensors").read_bytes()
    path = tmp_path / "second_moments.safetensors"
    place = len(content) - 9  # The last but one number, of 25 in the last matrix.
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match="layer 1 is no second moment"):
        read_moments(path)
