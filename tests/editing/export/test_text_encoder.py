"""Exports: transformers loads the edited encoder and computes what ours computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from emcid_jax.editing.export import text_encoder
from emcid_jax.editing.export.edit_file import WEIGHT
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit, apply_edit
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.ownership import SIGNATURE

LAYERS = (1, 3)
VERSION_0_1 = Path(__file__).parents[2] / "data" / "version_0_1"


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def deltas() -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {layer: rng.standard_normal((32, 64)) * 0.1 for layer in LAYERS}


@pytest.fixture(scope="module")
def edited(pipeline: Pipeline, deltas: dict[int, np.ndarray]) -> dict[str, Any]:
    report = StageTwoReport((), 0.0, 0.0)
    return apply_edit(pipeline.params["text_encoder"], WeightEdit(deltas, report))


def base_weights(pipeline: Pipeline) -> dict[str, np.ndarray]:
    """What the base folder holds, under the names that every tool knows."""
    weights = load_file(pipeline.folder / "text_encoder" / "model.safetensors")
    # transformers 5 writes fresh models without the prefix, and reads both.
    return {f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}


def test_transformers_loads_the_folder_and_agrees(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "text_encoder"
    text_encoder.write_text_encoder(target, edited, pipeline.folder / "text_encoder")
    ids = tokenize(pipeline.encoder.tokenizer, ["a photo of a dog", "art"])
    oracle = CLIPTextModel.from_pretrained(target).eval()
    with torch.no_grad():
        wanted = oracle(torch.from_numpy(ids.astype(np.int64))).last_hidden_state.numpy()
    ours = pipeline.encoder.model.apply({"params": edited}, jnp.asarray(ids))
    difference = np.abs(np.asarray(ours.last_hidden_state) - wanted)
    assert difference.max() <= 1e-5 * np.abs(wanted).max()
    base = pipeline.encoder.model.apply(
        {"params": pipeline.params["text_encoder"]}, jnp.asarray(ids)
    )
    assert np.abs(np.asarray(base.last_hidden_state) - wanted).max() > 0.01


def test_names_and_metadata_are_those_of_the_base_folder(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path
) -> None:
    source = pipeline.folder / "text_encoder"
    target = tmp_path / "text_encoder"
    text_encoder.write_text_encoder(target, edited, source)
    assert {path.name for path in tmp_path.iterdir()} == {"text_encoder"}
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((target / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    with safe_open(target / "model.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt"
    before = base_weights(pipeline)
    after = load_file(target / "model.safetensors")
    assert set(before) == set(after)
    assert all(name.startswith("text_model.") for name in after)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {WEIGHT.format(layer) for layer in LAYERS}


@pytest.mark.parametrize(("dtype", "stored"), [("source", "F16"), ("float32", "F32")])
def test_the_stored_type_is_the_bases_unless_asked(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path, dtype: str, stored: str
) -> None:
    source = tmp_path / "text_encoder"
    source.mkdir()
    weights = load_file(pipeline.folder / "text_encoder" / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in weights.items()}, source / "model.safetensors")
    config = json.loads((pipeline.folder / "text_encoder" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    text_encoder.write_text_encoder(tmp_path / "target", edited, source, dtype)
    with safe_open(tmp_path / "target" / "model.safetensors", framework="np") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {stored}
    said = json.loads((tmp_path / "target" / "config.json").read_text())["dtype"]
    assert said == {"F16": "float16", "F32": "float32"}[stored]


@pytest.mark.parametrize("sharded", [False, True])
def test_every_tensor_keeps_its_type(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path, sharded: bool
) -> None:
    """One float16 among tensors of float32 does not make them all so, in whatever shard it is."""
    source = tmp_path / "text_encoder"
    if sharded:
        text = CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder")
        text.save_pretrained(source, max_shard_size="40kB")
    else:
        shutil.copytree(pipeline.folder / "text_encoder", source)
    half = "encoder.layers.1.mlp.fc2.weight"
    for file in source.glob("*.safetensors"):
        arrays = load_file(file)
        cast = {n: a.astype(np.float16) for n, a in arrays.items() if n.endswith(half)}
        save_file(arrays | cast, file, metadata={"format": "pt"})
    target = tmp_path / "out" / "text_encoder"
    text_encoder.write_text_encoder(target, edited, source)
    found = load_file(target / "model.safetensors")
    kinds = {name.removeprefix("text_model."): array.dtype.name for name, array in found.items()}
    assert kinds == dict.fromkeys(kinds, "float32") | {half: "float16"}
    said = [json.loads((where / "config.json").read_text()) for where in (source, target)]
    assert said[0] == said[1]


def test_a_value_too_large_for_the_type_is_refused_and_nothing_is_left(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path
) -> None:
    large = jax.tree.map(lambda leaf: leaf * 1e6, edited)
    with pytest.raises(UserError, match="float16"):
        text_encoder.write_text_encoder(
            tmp_path / "text_encoder", large, pipeline.folder / "text_encoder", "float16"
        )
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_nothing_else(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path
) -> None:
    target, source = tmp_path / "text_encoder", pipeline.folder / "text_encoder"
    target.mkdir()
    text_encoder.write_text_encoder(target, edited, source)
    written = (target / "model.safetensors").read_bytes()
    text_encoder.write_text_encoder(target, pipeline.params["text_encoder"], source)
    assert (target / "model.safetensors").read_bytes() != written
    text_encoder.write_text_encoder(target, edited, source)
    assert (target / "model.safetensors").read_bytes() == written  # The same bytes each time.

    names = {"notes.txt": "notes.txt", "config.json": "config.json"}
    # Of a folder without our weights nothing is known to be ours.
    for name, named in (names | {"model.safetensors": "config.json"}).items():
        shutil.rmtree(target)
        text_encoder.write_text_encoder(target, edited, source)
        (target / name).write_text("mine")
        with pytest.raises(UserError, match=f"{named}: was not written by"):
            text_encoder.write_text_encoder(target, edited, source)
        assert (target / name).read_text() == "mine"


def test_what_version_0_1_exported_is_known_by_the_run_beside_it(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path
) -> None:
    target, source = tmp_path / "text_encoder", pipeline.folder / "text_encoder"
    shutil.copytree(source, target)  # As it wrote them: no signature.
    with pytest.raises(UserError, match="was not written by"):
        text_encoder.write_text_encoder(target, edited, source)
    shutil.copyfile(VERSION_0_1 / "edit.safetensors", tmp_path / "edit.safetensors")
    with pytest.raises(UserError, match="was not written by"):
        text_encoder.write_text_encoder(target, edited, source)
    (tmp_path / "config.json").write_text('{"config": {}, "inputs": {}, "environment": {}}')
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: was not written by"):
        text_encoder.write_text_encoder(target, edited, source)
    (target / "notes.txt").unlink()
    text_encoder.write_text_encoder(target, edited, source)
    assert SIGNATURE in metadata(target / "model.safetensors")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="np") as opened:
        return opened.metadata()


@pytest.mark.parametrize("dtype", ["source", "float16"])
def test_the_clip_file_has_the_names_that_comfyui_knows_and_transformers_reads_it(
    pipeline: Pipeline, edited: dict[str, Any], tmp_path: Path, dtype: str
) -> None:
    text_encoder.write_text_encoder(tmp_path / "folder", edited, pipeline.folder / "text_encoder")
    arrays = load_file(tmp_path / "folder" / "model.safetensors")
    arrays = {name.removeprefix("text_model."): array for name, array in arrays.items()}
    path = tmp_path / "clip_l.safetensors"
    text_encoder.write_clip(path, arrays | {"embeddings.position_ids": np.arange(32)[None]}, dtype)
    found = load_file(path)
    assert {array.dtype.name for array in found.values()} == {
        "float32" if dtype == "source" else dtype
    }
    # What ComfyUI's and Forge's loaders look for; nothing else may be there.
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in found
    assert all(name.startswith("text_model.") for name in found)
    assert not any(name.endswith("position_ids") for name in found)
    config = json.loads((pipeline.folder / "text_encoder" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    path.rename(tmp_path / "model.safetensors")
    oracle = CLIPTextModel.from_pretrained(tmp_path).eval()
    ids = tokenize(pipeline.encoder.tokenizer, ["a photo of a dog", "art"])
    with torch.no_grad():
        wanted = oracle(torch.from_numpy(ids.astype(np.int64))).last_hidden_state.numpy()
    ours = pipeline.encoder.model.apply({"params": edited}, jnp.asarray(ids))
    bar = 1e-4 if dtype == "source" else 0.02
    np.testing.assert_allclose(ours.last_hidden_state, wanted, rtol=bar, atol=bar)
