"""Checksums inside files: no byte can change unnoticed, and no text can pass for the field."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums


def file(text: str) -> bytes:
    return json.dumps({"text": text, "checksum": checksums.UNSEALED}).encode()


@given(st.text(), st.data())
def test_any_changed_byte_is_found(text: str, data: st.DataObject) -> None:
    content = checksums.sealed(file(text))
    assert checksums.is_intact(content)
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    assert not checksums.is_intact(content[:place] + bytes([other]) + content[place + 1 :])
    assert not checksums.is_intact(content[:-1])
    assert not checksums.is_intact(content + b" ")


@pytest.mark.parametrize("text", [f'"checksum": "{checksums.UNSEALED}"', '"checksum":"' + "a" * 64])
def test_text_of_a_user_is_not_the_field(text: str) -> None:
    content = checksums.sealed(file(text))
    assert checksums.is_intact(content)
    assert json.loads(content)["text"] == text
    assert json.loads(content)["checksum"] != checksums.UNSEALED


def test_a_file_without_the_field_is_not_intact() -> None:
    assert not checksums.is_intact(b"{}")
    with pytest.raises(ValueError, match="no field"):
        checksums.sealed(b"{}")


ABOUT = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
    max_size=9,
)


@given(ABOUT, st.integers(0, 3))
def test_the_same_tensors_are_the_same_bytes_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, about: dict[str, str], count: int
) -> None:
    about.pop("checksum", None)
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    arrays = {f"{i}é": np.arange(i, dtype=kind) for i in range(count) for kind in ("f4", "f8")}
    written = set()
    for order in (1, -1):
        items = list(about.items())[::order]
        checksums.write_tensors(path, dict(list(arrays.items())[::order]), dict(items))
        written.add(path.read_bytes())
    assert len(written) == 1
    assert checksums.is_intact(written.pop())
    found = checksums.read_tensors(path, "file", "restore it")
    assert (found.about, found.sealed, found.arrays.keys()) == (about, True, arrays.keys())
    assert load_file(path).keys() == arrays.keys()


def test_tensors_in_any_order_of_memory_are_written_as_they_read(tmp_path: Path) -> None:
    rows = np.arange(12, dtype="f4").reshape(3, 4)
    arrays = {
        "rows": rows,
        "columns": np.asfortranarray(rows),
        "part": rows[:, 1::2],
        "one": rows[2, 3],
    }
    checksums.write_tensors(tmp_path / "a.safetensors", arrays, {})
    found = load_file(tmp_path / "a.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


@given(st.data())
def test_any_changed_byte_of_tensors_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "b.safetensors"
    checksums.write_tensors(path, {"a": np.arange(9.0)}, {"k": "v"})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = checksums.read_tensors(path, "file", "restore it")
    except UserError as error:
        said = str(error)
    else:  # The field's own name was hit: no checksum is left, and another field is there.
        assert not found.sealed
        assert found.about.keys() != {"k"}
        return
    assert said.startswith(f"{path}: no file, or damaged (")
    assert said.endswith("); restore it")


def test_json_is_the_same_bytes_and_any_changed_byte_is_found(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", {"b": [1, "é"], "a": {"y": 1.5, "x": None}}
    checksums.write_json(path, content)
    written = path.read_bytes()
    checksums.write_json(path, dict(reversed(content.items())))
    assert path.read_bytes() == written
    assert checksums.read_json(path, "restore it") == content
    for place in range(len(written)):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises(UserError, match=r"a\.json: missing or damaged .*; restore it"):
            checksums.read_json(path, "restore it")
    with pytest.raises(UserError, match=r"b\.json: missing or damaged"):
        checksums.read_json(tmp_path / "b.json", "restore it")
