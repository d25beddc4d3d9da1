"""Variants, shards and mixed types: the named weights are edited, whole, and all else stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from emcid_jax.editing.export import into_folder, stored_weights
from emcid_jax.editing.export.edit_file import EditFile, pack
from emcid_jax.runtime.errors import UserError

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def content() -> EditFile:
    rng = np.random.default_rng(0)
    return pack({layer: 0.1 * rng.standard_normal((32, 64)) for layer in LAYERS})


def sharded(text: CLIPTextModel, folder: Path) -> None:
    text.save_pretrained(folder, max_shard_size="40kB")


def sharded_half(text: CLIPTextModel, folder: Path) -> None:
    text.half().save_pretrained(folder, max_shard_size="40kB", variant="fp16")


def only_half(text: CLIPTextModel, folder: Path) -> None:
    text.half().save_pretrained(folder, variant="fp16")


def mixed(text: CLIPTextModel, folder: Path) -> None:
    """One tensor of float16 among those of float32, as some trainers write them."""
    text.save_pretrained(folder)
    file = folder / "model.safetensors"
    arrays = load_file(file)
    name = next(name for name in arrays if name.endswith("layers.2.mlp.fc2.weight"))
    save_file(arrays | {name: arrays[name].astype(np.float16)}, file, metadata={"format": "pt"})


LAYOUTS: dict[str, tuple[Callable[[CLIPTextModel, Path], None], str]] = {
    "sharded": (sharded, ""),
    "sharded fp16": (sharded_half, "fp16"),
    "only fp16": (only_half, "fp16"),
    "mixed": (mixed, ""),
}


@pytest.fixture(params=LAYOUTS)
def model(request: pytest.FixtureRequest, tiny_pipeline_folder: Path, tmp_path: Path) -> Any:
    """A folder in every layout, and the variant that other tools load it by."""
    write, variant = LAYOUTS[request.param]
    text = CLIPTextModel.from_pretrained(tiny_pipeline_folder / "text_encoder")
    write(text, tmp_path / "model" / "text_encoder")
    return tmp_path / "model", variant


def tensors(folder: Path, variant: str) -> dict[str, np.ndarray]:
    """What transformers loads, each in its stored type."""
    found = CLIPTextModel.from_pretrained(
        folder / "text_encoder", variant=variant or None, dtype=torch.float64
    )
    return {name.removeprefix("text_model."): x.numpy() for name, x in found.state_dict().items()}


def types(folder: Path, variant: str) -> dict[str, Any]:
    arrays = stored_weights.read_weights(folder, variant).arrays
    return {name: array.dtype for name, array in arrays.items()}


def ledger_of(folder: Path, variant: str) -> dict[str, Any]:
    arrays = stored_weights.read_weights(folder, variant).arrays
    base = {"text_encoder": stored_weights.weights_hash(arrays)}
    return {"base": base, "edited": "?", "requests": []}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "text_encoder").iterdir()}


def require_edited(now: dict[str, np.ndarray], base: dict[str, np.ndarray], edit: EditFile) -> None:
    deltas = {f"encoder.layers.{i}.mlp.fc2.weight": dW for i, dW in edit.deltas().items()}
    for name, array in now.items():
        wanted = base[name] + deltas.get(name, 0)
        np.testing.assert_allclose(array, wanted, rtol=2e-3, atol=1e-4)
        assert np.array_equal(array, base[name]) == (name not in deltas)


def test_other_tools_load_the_edit_until_it_is_undone(model: Any, content: EditFile) -> None:
    folder, variant = model
    base, before, kinds = tensors(folder, variant), snapshot(folder), types(folder, variant)
    # The only variant there is need not be named.
    assert into_folder.apply(folder, content, ledger_of(folder, "")) == []
    require_edited(tensors(folder, variant), base, content)
    assert types(folder, variant) == kinds
    with pytest.raises(UserError, match="is edited already"):
        into_folder.apply(folder, content, ledger_of(folder, variant), variant=variant)
    into_folder.undo(folder, variant=variant)
    assert snapshot(folder) == before


def test_a_call_broken_off_leaves_the_old_or_the_new_weights(
    model: Any,
    content: EditFile,
    interrupted: Callable[[Callable[[], object], int], bool],
) -> None:
    folder, variant = model
    base, before = tensors(folder, variant), snapshot(folder)
    ledger = ledger_of(folder, variant)
    into_folder.apply(folder, content, ledger)
    wanted, edited = snapshot(folder), tensors(folder, variant)
    into_folder.undo(folder)
    number = 0
    while interrupted(lambda: into_folder.apply(folder, content, ledger), number):
        now = tensors(folder, variant)
        same = [all(np.array_equal(now[name], one[name]) for name in now) for one in (base, edited)]
        assert any(same), number
        if number % 2 or same[1]:  # Either call completes the work.
            into_folder.undo(folder)
            assert snapshot(folder) == before
        into_folder.apply(folder, content, ledger)
        assert snapshot(folder) == wanted
        into_folder.undo(folder)
        assert snapshot(folder) == before
        number += 1
    assert number > 2 * (len(wanted) - len(before))


def test_a_copy_holds_the_edit_and_no_other_weights(
    model: Any, content: EditFile, tmp_path: Path
) -> None:
    folder, variant = model
    base, before = tensors(folder, variant), snapshot(folder)
    other = folder / "text_encoder" / "pytorch_model.bin"
    other.write_bytes(b"an old pickle")
    left = into_folder.write_copy(
        tmp_path / "copy", folder, content, ledger_of(folder, variant), variant=variant
    )
    assert left == ["text_encoder/pytorch_model.bin"]
    require_edited(tensors(tmp_path / "copy", variant), base, content)
    assert types(tmp_path / "copy", variant) == types(folder, variant)
    assert set(snapshot(tmp_path / "copy")) == set(before)
    other.unlink()
    assert snapshot(folder) == before


def test_the_named_variant_is_edited_and_the_rest_is_told(
    tiny_pipeline_folder: Path, content: EditFile, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder / "text_encoder", folder / "text_encoder")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    only_half(text, folder / "text_encoder")
    before = snapshot(folder)
    ledger = ledger_of(folder, "fp16")
    with pytest.raises(UserError, match="is not the one that the edit was made for"):
        into_folder.apply(folder, content, ledger)  # Plain weights are others.
    assert into_folder.apply(folder, content, ledger, variant="fp16") == [
        "text_encoder/model.safetensors"
    ]
    assert snapshot(folder)["model.safetensors"] == before["model.safetensors"]
    assert snapshot(folder)["model.fp16.safetensors"] != before["model.fp16.safetensors"]
    with pytest.raises(UserError, match=r"nothing to undo \(edit\.fp16\.json is of another"):
        into_folder.undo(folder)
    # The plain weights take the same edit beside it, and each is undone on its own.
    into_folder.apply(folder, content, ledger, force=True)
    into_folder.undo(folder, variant="fp16")
    assert snapshot(folder)["model.fp16.safetensors"] == before["model.fp16.safetensors"]
    assert snapshot(folder)["model.safetensors"] != before["model.safetensors"]
    into_folder.undo(folder)
    assert snapshot(folder) == before
    with pytest.raises(UserError, match=r"no \*\.bf16\.safetensors"):
        into_folder.apply(folder, content, ledger, variant="bf16")


@pytest.mark.parametrize("name", ["edit.json", "model.safetensors.unedited"])
def test_somebody_elses_file_is_not_overwritten(
    name: str, tiny_pipeline_folder: Path, content: EditFile, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder / "text_encoder", folder / "text_encoder")
    (folder / "text_encoder" / name).write_text(json.dumps({"mine": True}))
    before = snapshot(folder)
    with pytest.raises(UserError, match=f"{name}: is no.* move it away"):
        into_folder.apply(folder, content, ledger_of(folder, ""))
    assert snapshot(folder) == before


def test_an_edit_of_version_0_1_is_undone(
    tiny_pipeline_folder: Path, content: EditFile, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder / "text_encoder", folder / "text_encoder")
    before = snapshot(folder)
    into_folder.apply(folder, content, ledger_of(folder, ""))
    record = folder / "text_encoder" / "edit.json"
    about = json.loads(record.read_text())
    del about["added"], about["checksum"]  # It knew neither.
    record.write_text(json.dumps(about))
    into_folder.undo(folder)
    assert snapshot(folder) == before
