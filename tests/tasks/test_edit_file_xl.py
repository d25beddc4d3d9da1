"""Task `edit_file` with an edit of both encoders of SDXL."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.config import ModelConfig
from emcid_jax.editing.export import edit_file, stored_weights
from emcid_jax.editing.export.edit_file import pack
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.edit_file import EditFileConfig, run
from ldm_xl import REFINER_CLIP, ldm_xl, open_clip

PARTS = ("text_encoder", "text_encoder_2")


@pytest.fixture
def edit(tiny_xl_folder: Path, small_ledger: Callable[..., Any], tmp_path: Path) -> Path:
    rng = np.random.default_rng(8)
    up, down = rng.standard_normal((32, 4)), rng.standard_normal((4, 64))
    second = pack({0: np.eye(48, 96), 2: 0.2 * np.eye(48, 96)})
    content = dataclasses.replace(pack({1: 0.1 * up @ down}), others={"text_encoder_2": second})
    hashes = {
        part: stored_weights.weights_hash(
            stored_weights.read_weights(tiny_xl_folder, part=part).arrays
        )
        for part in PARTS
    }
    other = small_ledger(0, 2)
    about = {name: other[name] for name in ("edited", "moments", "stage_two", "report")}
    path = tmp_path / "edit.safetensors"
    ledger = small_ledger(1, base=hashes, encoders={"text_encoder_2": about})
    edit_file.write_edit(path, content, ledger)
    return path


def test_operations(
    edit: Path, tiny_xl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def say(operation: str, path: Path | None = None, **fields: Any) -> str:
        model = ModelConfig(path=str(path)) if path else ModelConfig()
        config = EditFileConfig(operation=operation, edit=str(edit), model=model, **fields)
        config.check()
        run(config, out)
        return capsys.readouterr().out

    said = say("show")
    assert "layer 1: factors of rank 4" in said
    assert "made for text_encoder_2 " in said
    assert "layer 0: dense" in said

    model = Path(shutil.copytree(tiny_xl_folder, tmp_path / "model"))
    files = {part: model / part / "model.safetensors" for part in PARTS}
    original = {part: file.read_bytes() for part, file in files.items()}
    say("folder", model)
    assert "text_encoder_2 layer 0: rank 2" in say("lora", rank=2)
    say("diff")
    assert len(load_file(out / "diff.safetensors")) == 3
    say("clip", model)
    say("apply", model)
    for part, name in zip(PARTS, ("clip_l", "clip_g"), strict=True):
        edited, clip = load_file(files[part]), load_file(out / f"{name}.safetensors")
        copy = load_file(out / "model" / part / "model.safetensors")
        assert len(clip) == len(edited) == len(copy)
        for key, array in edited.items():
            np.testing.assert_array_equal(copy[key], array)
            inside = key.startswith(("text_model.", "text_projection."))
            np.testing.assert_array_equal(clip[key if inside else f"text_model.{key}"], array)
    say("undo", model)
    assert {part: file.read_bytes() for part, file in files.items()} == original


def test_checkpoint_of_the_base_model_and_of_the_refiner(
    edit: Path, tiny_xl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = ldm_xl(tiny_xl_folder)
    beside = tmp_path / "files"
    ignored = shutil.ignore_patterns("*.safetensors", "model_index*")
    shutil.copytree(tiny_xl_folder, beside, ignore=ignored)
    image = {key: array for key, array in tensors.items() if key.startswith("model.")}
    save_file(tensors, beside / "base.safetensors")
    save_file(image | open_clip(tiny_xl_folder, REFINER_CLIP), beside / "refiner.safetensors")
    deltas = edit_file.read_edit(edit)[0].of("text_encoder_2").deltas()
    for name, start in (("base", "conditioner.embedders.1.model."), ("refiner", REFINER_CLIP)):
        source = beside / f"{name}.safetensors"
        config = EditFileConfig(
            operation="checkpoint", edit=str(edit), model=ModelConfig(path=str(source))
        )
        config.check()
        run(config, tmp_path / "out")
        target = tmp_path / "out" / f"{name}-edited.safetensors"
        found, before = load_file(target), load_file(source)
        changed = {key for key in before if not np.array_equal(found[key], before[key])}
        second = {f"{start}transformer.resblocks.{i}.mlp.c_proj.weight" for i in deltas}
        assert second == {key for key in changed if key.startswith(start)}
        assert len(changed) == {"base": 3, "refiner": 2}[name]
        target.unlink()

    other = {key: array * 2 for key, array in open_clip(tiny_xl_folder, REFINER_CLIP).items()}
    save_file(image | other, beside / "refiner.safetensors")
    with pytest.raises(UserError, match=r"second text encoder .* is not the one"):
        run(config, tmp_path / "out")
