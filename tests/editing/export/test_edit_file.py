"""Edit files: the smaller form, as accurate as the larger; nothing in them changes unnoticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.editing.export import edit_file
from emcid_jax.editing.export.edit_file import WEIGHT, pack, read_edit, read_ledger, write_edit
from emcid_jax.runtime.errors import UserError

Ledger = Callable[..., dict[str, Any]]


def low_rank(rank: int, seed: int = 0, decay: float = 1.0) -> np.ndarray:
    """96 x 384, singular values falling by `decay` each."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((96, rank)), rng.standard_normal((rank, 384))
    return left * decay ** np.arange(rank) @ right


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_an_edit_of_few_requests_is_stored_as_factors_as_accurate_as_float32(
    decay: float, small_ledger: Ledger, tmp_path: Path
) -> None:
    deltas = {3: low_rank(20, decay=decay), 1: low_rank(96)}
    content = pack(deltas)
    dense, factors = content.layers
    assert (dense.layer, dense.form, factors.layer, factors.form) == (1, "dense", 3, "factors")
    assert content.arrays[WEIGHT.format(1)].shape == (96, 384)
    assert content.arrays[f"{WEIGHT.format(3)}.up"].shape == (96, 20)
    assert content.arrays[f"{WEIGHT.format(3)}.down"].shape == (20, 384)
    wanted = small_ledger(1, 3, edited="é")
    write_edit(tmp_path / "edit.safetensors", content, wanted)
    assert load_file(tmp_path / "edit.safetensors").keys() == content.arrays.keys()
    found, ledger = read_edit(tmp_path / "edit.safetensors")
    assert ledger == wanted
    assert found.layers == content.layers
    for layer, delta in found.deltas().items():
        as_float32 = error(deltas[layer].astype(np.float32), deltas[layer])
        assert error(delta, deltas[layer]) < 4 * as_float32
        stated = next(stored.error for stored in found.layers if stored.layer == layer)
        assert stated == pytest.approx(error(delta, deltas[layer]))
    np.testing.assert_array_equal(found.deltas()[1], deltas[1].astype(np.float32))


def test_the_smaller_form_is_taken() -> None:
    even = 96 * 384 / (96 + 384)  # Factors of this rank have as many numbers as dW.
    for rank in (int(even) - 1, int(even) + 1):
        content = pack({0: low_rank(rank)})
        form = "factors" if rank < even else "dense"
        assert content.layers[0].form == form
        assert sum(array.size for array in content.arrays.values()) <= 96 * 384


def test_a_layer_without_change_is_stored_as_such() -> None:
    content = pack({0: np.zeros((96, 384))})
    assert content.layers[0].norm == 0
    np.testing.assert_array_equal(content.deltas()[0], 0)


def test_any_flipped_bit_is_found_by_show_too(small_ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    content, ledger = pack({0: low_rank(5)}), small_ledger(0)
    write_edit(path, content, ledger)
    assert read_ledger(path) == ({"text_encoder": content.layers}, ledger)
    data = path.read_bytes()
    for place in (3, 20, 300, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        for read in (read_edit, read_ledger):
            with pytest.raises(UserError, match=r"edit\.safetensors: no weight edit"):
                read(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_file_that_is_no_edit_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edit.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"edit\.safetensors: no weight edit"):
        edit_file.read_edit(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(UserError, match="no weight edit"):
        edit_file.read_edit(path)
    with pytest.raises(UserError, match="no weight edit"):
        edit_file.read_edit(tmp_path / "nowhere")


def test_the_edits_of_two_encoders_lie_in_one_file(small_ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    one, other = small_ledger(0, 2), small_ledger(1)
    second = pack({1: low_rank(7)})
    content = dataclasses.replace(
        pack({0: low_rank(5), 2: low_rank(90)}), others={"text_encoder_2": second}
    )
    about = {name: other[name] for name in ("edited", "moments", "stage_two", "report")}
    ledger = one | {
        "base": one["base"] | {"text_encoder_2": "b" * 64},
        "encoders": {"text_encoder_2": about},
    }
    write_edit(path, content, ledger)
    found, read = read_edit(path)
    assert read == ledger
    edits, wanted = edit_file.of_model(found, read), edit_file.by_part(content)
    assert edits.keys() == wanted.keys() == {"text_encoder", "text_encoder_2"}
    for part, edit in wanted.items():
        assert edits[part].layers == edit.layers
        for layer, delta in edit.deltas().items():
            np.testing.assert_array_equal(edits[part].deltas()[layer], delta)
    assert read_ledger(path)[0] == {part: edit.layers for part, edit in wanted.items()}

    # Of a model with two encoders both are there, edited or not.
    write_edit(path, pack({0: low_rank(5), 2: low_rank(90)}), one | {"base": ledger["base"]})
    edits = edit_file.of_model(*read_edit(path))
    assert [len(edit.layers) for edit in edits.values()] == [2, 0]

    # The ledger and the tensors speak of the same encoders.
    report = {"text_encoder_2": about | {"report": one["report"]}}
    for wrong, message in (
        ({"base": one["base"]}, "ledger.base has no text_encoder_2"),
        ({"encoders": report}, "layers are not those"),
    ):
        write_edit(path, content, ledger | wrong)
        with pytest.raises(UserError, match=message):
            read_edit(path)
    write_edit(path, dataclasses.replace(content, others={}), ledger)
    with pytest.raises(UserError, match="no weight edit"):
        read_edit(path)
    write_edit(path, content, one)
    with pytest.raises(UserError, match="no weight edit"):
        read_edit(path)
