"""The task `edit_file` by its function: what it says and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.config import ExportConfig, ModelConfig
from emcid_jax.editing.export import edit_file, stored_weights
from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.sources import find_model
from emcid_jax.reporting.pages import card
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import replacing
from emcid_jax.tasks.edit_file import EditFileConfig, run
from emcid_jax.workflow import hub


@pytest.fixture
def model(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))


@pytest.fixture
def edit(model: Path, small_ledger: Callable[..., Any], tmp_path: Path) -> Path:
    arrays = load_file(model / "text_encoder" / "model.safetensors")
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((32, 4)), rng.standard_normal((4, 64))
    ledger = small_ledger(1, 2, base={"text_encoder": stored_weights.weights_hash(arrays)})
    path = tmp_path / "edit.safetensors"
    edit_file.write_edit(path, edit_file.pack({1: 0.1 * up @ down, 2: np.eye(32, 64)}), ledger)
    return path


def test_operations(
    edit: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(operation: str, **fields: Any) -> str:
        config = EditFileConfig(operation=operation, edit=str(edit), **fields)
        config.check()
        run(config, tmp_path / "out")
        return capsys.readouterr().out

    said = say("show")
    assert "layer 1: factors of rank 4" in said
    assert "layer 2: dense" in said
    assert "update: dog -> cat (weight 1, strength 0.5, memory abababababab)" in said
    here = ModelConfig(path=str(model))
    file = model / "text_encoder" / "model.safetensors"
    original = file.read_bytes()
    say("clip", model=here)
    clip = load_file(tmp_path / "out" / "clip_l.safetensors")
    assert "layer 2: rank 2, error 0.97" in say("lora", rank=2)  # Of 32 equal values: sqrt(30/32).
    assert (tmp_path / "out" / "lora.safetensors").exists()
    say("diff")
    whole = load_file(tmp_path / "out" / "diff.safetensors")
    np.testing.assert_array_equal(
        whole["lora_te_text_model_encoder_layers_2_mlp_fc2.diff"],
        edit_file.read_edit(tmp_path / "edit.safetensors")[0].deltas()[2].astype(np.float32),
    )
    say("apply", model=here)
    edited = load_file(file)
    assert file.read_bytes() != original
    for name, array in edited.items():
        np.testing.assert_array_equal(clip[f"text_model.{name.removeprefix('text_model.')}"], array)
    with pytest.raises(UserError, match="made for"):
        say("clip", model=here)
    say("undo", model=here)
    assert file.read_bytes() == original


def test_the_variant_is_edited_and_what_is_not_is_said(
    edit: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = model / "text_encoder"
    plain, half = text / "model.safetensors", text / "model.fp16.safetensors"
    arrays = {name: array.astype(np.float16) for name, array in load_file(plain).items()}
    save_file(arrays, half, metadata={"format": "pt"})
    before = plain.read_bytes(), half.read_bytes()
    here = ModelConfig(path=str(model), variant="fp16")

    def say(operation: str) -> str:
        config = EditFileConfig(operation=operation, edit=str(edit), model=here, force=True)
        run(config, tmp_path / "out")
        return capsys.readouterr().out

    say("clip")  # Before the folder is edited: the variant's weights and types.
    clip = load_file(tmp_path / "out" / "clip_l.safetensors")
    assert "text_encoder/model.safetensors is not edited" in say("apply")
    assert plain.read_bytes() == before[0]
    edited = load_file(half)
    assert {array.dtype for array in clip.values()} == {np.dtype(np.float16)}
    for name, array in edited.items():
        np.testing.assert_array_equal(clip[f"text_model.{name.removeprefix('text_model.')}"], array)
    say("undo")
    assert (plain.read_bytes(), half.read_bytes()) == before
    assert "text_encoder/model.safetensors is left out" in say("folder")
    copy = load_file(tmp_path / "out" / "model" / "text_encoder" / "model.fp16.safetensors")
    for name, array in edited.items():
        np.testing.assert_array_equal(copy[name], array)


def test_an_exported_folder_has_a_card_and_keeps_the_bases(
    edit: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "---\nlicense: openrail++\n---\n# Base\n"
    (model / "README.md").write_text(base)
    here = ModelConfig(path=str(model))
    config = EditFileConfig(operation="folder", edit=str(edit), model=here)
    run(config, tmp_path / "out")
    made = tmp_path / "out" / "model"
    found = (made / "README.md").read_bytes()
    assert card.is_card(found)
    assert b"license: openrail++" in found
    assert str(tmp_path).encode() not in found  # Where a model lies is nobody's business.
    assert (made / "README-base.md").read_text() == base
    # An export of an export keeps the first base's, and changes no file that it links to.
    before = {path: path.read_bytes() for path in made.iterdir() if path.is_file()}
    again = EditFileConfig(
        operation="folder", edit=str(edit), model=ModelConfig(path=str(made)), force=True
    )
    run(again, tmp_path / "again")
    assert (tmp_path / "again" / "model" / "README-base.md").read_text() == base
    assert {path: path.read_bytes() for path in before} == before
    assert (model / "README.md").read_text() == base


@pytest.mark.parametrize("operation", ["folder", "clip", "lora", "diff"])
def test_what_is_exported_goes_to_the_hub_with_its_card(
    operation: Any, edit: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Path | bytes] = {}
    monkeypatch.setattr(hub, "look", lambda name, public: hub.Place(name, None, public, None))
    monkeypatch.setattr(hub, "push", lambda place, files, message: sent.update(files) or place.name)
    config = EditFileConfig(
        operation=operation,
        edit=str(edit),
        model=ModelConfig(path=str(model)),
        export=ExportConfig(hub="me/mine", base_model="some/base"),
    )
    config.check()
    run(config, tmp_path / "out")
    read = {
        name: content if isinstance(content, bytes) else content.read_bytes()
        for name, content in sent.items()
    }
    assert card.is_card(read["README.md"])
    assert b"base_model: some/base\n" in read["README.md"]
    if operation == "folder":
        made = [path for path in (tmp_path / "out" / "model").rglob("*") if path.is_file()]
        assert set(sent.values()) == set(made)
        assert "unet/config.json" in sent
    else:
        name = {"clip": "clip_l"}.get(operation, operation)
        assert set(sent) == {f"{name}.safetensors", "README.md"}
        assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}.safetensors"]


def write_single_file(folder: Path, path: Path) -> None:
    """The weights of a diffusers folder under the keys of a Stable Diffusion 1 checkpoint."""
    unet = UNetConfig.from_dict(json.loads((folder / "unet/config.json").read_text()))
    vae = VaeConfig.from_dict(json.loads((folder / "vae/config.json").read_text()))
    arrays: dict[str, np.ndarray] = {}
    for part, file in SD.weight_files.items():
        for name, array in load_file(folder / part / file).items():
            if part == "text_encoder":
                key = ldm_keys.locate_text(
                    f"text_model.{name.removeprefix('text_model.')}", "text_encoder", 1, ()
                ).key
            elif part == "unet":
                key = ldm_keys.locate_unet(name, unet).key
            else:
                key = ldm_keys.locate_vae(name, vae).key
            # Old autoencoders have attention as 1x1 convolutions.
            square = part == "vae" and "attn_1" in key and array.ndim == 2
            arrays[key] = array[:, :, None, None] if square else array
    save_file(arrays, path)


def test_what_a_killed_export_left_goes_even_where_the_export_is_done(
    edit: Path, model: Path, tmp_path: Path
) -> None:
    """A process that died behind its last rename: the same command says that all is there."""
    out = tmp_path / "out"
    config = EditFileConfig(operation="folder", edit=str(edit), model=ModelConfig(path=str(model)))
    run(config, out)
    with replacing(out / "file") as temporary:
        name = temporary.name.split(".")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = out / ".".join([*name[:3], str(dead.pid), *name[4:]])
    left.mkdir()
    with pytest.raises(UserError, match="is there already"):
        run(config, out)
    assert sorted(path.name for path in out.iterdir()) == ["file", "model"]


def test_an_edited_checkpoint_is_the_edited_model(
    edit: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside = tmp_path / "checkpoints"  # Configs and tokenizer lie beside, as a user would have it.
    ignored = shutil.ignore_patterns("*.safetensors", "model_index*")
    shutil.copytree(model, beside, ignore=ignored)
    write_single_file(model, beside / "sd.safetensors")
    config = EditFileConfig(
        operation="checkpoint",
        edit=str(edit),
        model=ModelConfig(path=str(beside / "sd.safetensors")),
    )
    config.check()
    run(config, tmp_path / "out")
    shutil.copy(tmp_path / "out" / "sd-edited.safetensors", beside)
    found = load_pipeline(find_model(str(beside / "sd-edited.safetensors"))).params
    wanted = load_pipeline(model).params
    deltas = edit_file.read_edit(edit)[0].deltas()
    for layer, delta in deltas.items():
        fc2 = wanted["text_encoder"]["text_model"]["encoder"][f"layers.{layer}"]["mlp"]["fc2"]
        assert np.abs(delta).max() > 0.1
        fc2["kernel"] = (np.asarray(fc2["kernel"], np.float64) + delta.T).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)

    # Another file in its place, of the same size and time, is not taken for it.
    source = beside / "sd.safetensors"
    before, made = source.stat(), (tmp_path / "out" / "sd-edited.safetensors").read_bytes()
    arrays = load_file(source)
    layer = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    save_file(arrays | {layer: arrays[layer] + 1}, source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    with pytest.raises(UserError, match="is not the one that the edit was made for"):
        run(config, tmp_path / "again")
    with pytest.raises(UserError, match=r"sd-edited\.safetensors: is there already"):
        run(config, tmp_path / "out")
    assert (tmp_path / "out" / "sd-edited.safetensors").read_bytes() == made


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"operation": "show"}, "config.edit is empty"),
        ({"operation": "undo"}, "'sprites', which is no folder of yours"),
        ({"operation": "checkpoint", "edit": "e"}, "'sprites', which is no file"),
        (
            {"operation": "lora", "edit": "e", "model": ModelConfig(export_dtype="bfloat16")},
            "'bfloat16'",
        ),
        ({"edit": "e", "export": ExportConfig(hub="a/b")}, "export.hub is 'a/b', but operation"),
        (
            {"operation": "lora", "edit": "e", "export": ExportConfig(hub="mine")},
            "export.hub is 'mine', which the Hub does not allow",
        ),
        (
            {"operation": "lora", "edit": "e", "export": ExportConfig(public=True)},
            "export.public is True, but config.export.hub is empty",
        ),
        (
            {"operation": "lora", "edit": "e", "export": ExportConfig(license="mit")},
            "'mit', but operation 'lora' writes no model card",
        ),
        (
            {"operation": "folder", "edit": "e", "export": ExportConfig(base_model="mine")},
            "export.base_model is 'mine'; give a Hub id",
        ),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        EditFileConfig(**fields).check()
