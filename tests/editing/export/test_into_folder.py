"""An edit applied to a model folder, read by transformers, and undone to the bit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.editing.export import into_folder, stored_weights
from emcid_jax.editing.export.edit_file import EditFile, pack
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.locks import held_folder

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def content() -> EditFile:
    rng = np.random.default_rng(0)
    return pack({layer: 0.1 * rng.standard_normal((32, 64)) for layer in LAYERS})


@pytest.fixture(scope="module")
def ledger(pipeline: Pipeline) -> dict[str, Any]:
    base = params_hash(pipeline.params["text_encoder"])
    return {"base": {"text_encoder": base}, "edited": "?", "requests": []}


@pytest.fixture(params=["float32", "float16"])
def folder(request: pytest.FixtureRequest, tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """The text encoder alone, in either type."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder / "text_encoder", folder / "text_encoder")
    file = folder / "text_encoder" / "model.safetensors"
    arrays = {name: array.astype(request.param) for name, array in load_file(file).items()}
    save_file(arrays, file, metadata={"format": "pt", "note": "mine"})
    return folder


def based_on(ledger: dict[str, Any], folder: Path) -> dict[str, Any]:
    arrays = load_file(folder / "text_encoder" / "model.safetensors")
    return ledger | {"base": {"text_encoder": stored_weights.weights_hash(arrays)}}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "text_encoder").iterdir()}


def test_the_hash_is_that_of_the_loaded_parameters(pipeline: Pipeline) -> None:
    arrays = load_file(pipeline.folder / "text_encoder" / "model.safetensors")
    assert stored_weights.weights_hash(arrays) == params_hash(pipeline.params["text_encoder"])
    arrays["text_model.embeddings.position_ids"] = np.arange(3)
    assert stored_weights.weights_hash(arrays) == params_hash(pipeline.params["text_encoder"])


def test_apply_adds_the_edit_and_undo_restores_every_byte(
    folder: Path, content: EditFile, ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    base = load_file(folder / "text_encoder" / "model.safetensors")
    ledger = based_on(ledger, folder)
    into_folder.apply(folder, content, ledger)
    edited = load_file(folder / "text_encoder" / "model.safetensors")
    assert edited.keys() == base.keys()
    deltas = content.deltas()
    for name, array in edited.items():
        assert array.dtype == base[name].dtype
        added = next((deltas[i] for i in LAYERS if name.endswith(f"layers.{i}.mlp.fc2.weight")), 0)
        wanted = (base[name].astype(np.float64) + added).astype(array.dtype)
        np.testing.assert_array_equal(array, wanted)
    assert json.loads(snapshot(folder)["edit.json"])["ledger"] == ledger
    into_folder.undo(folder)
    assert snapshot(folder) == before
    with pytest.raises(UserError, match="nothing to undo"):
        into_folder.undo(folder)


def test_a_wrong_base_is_refused_with_a_way_out(
    folder: Path, content: EditFile, ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    other = ledger | {"base": {"text_encoder": "0" * 64}}
    with pytest.raises(UserError, match=r"000000000000.*task bank, operation solve.*force=True"):
        into_folder.apply(folder, content, other)
    assert snapshot(folder) == before
    into_folder.apply(folder, content, other, force=True)
    into_folder.undo(folder)
    assert snapshot(folder) == before


def test_edits_do_not_pile_up(folder: Path, content: EditFile, ledger: dict[str, Any]) -> None:
    before = snapshot(folder)
    into_folder.apply(folder, content, based_on(ledger, folder))
    for force in (False, True):
        with pytest.raises(UserError, match="is edited already; undo that first"):
            into_folder.apply(folder, content, based_on(ledger, folder), force)
    into_folder.undo(folder)
    assert snapshot(folder) == before


def test_weights_that_changed_since_are_kept_unless_forced(
    folder: Path, content: EditFile, ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    into_folder.apply(folder, content, based_on(ledger, folder))
    file = folder / "text_encoder" / "model.safetensors"
    save_file({"a": np.zeros(1)}, file)
    with pytest.raises(UserError, match="changed after the edit"):
        into_folder.undo(folder)
    kept = file.with_name(file.name + into_folder.KEPT)
    original = kept.read_bytes()
    kept.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(UserError, match="original is lost or damaged"):
        into_folder.undo(folder, force=True)
    kept.write_bytes(original)
    into_folder.undo(folder, force=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["weights", "units"])
@pytest.mark.parametrize("completes", ["apply", "undo"])
def test_a_call_broken_off_anywhere_leaves_a_whole_model_that_either_call_completes(
    kind: str,
    completes: str,
    folder: Path,
    content: EditFile,
    units_content: EditFile,
    ledger: dict[str, Any],
    interrupted: Callable[[Callable[[], object], int], bool],
) -> None:
    """Weights and the width in config.json are both the old ones or both the new ones."""
    edit = units_content if kind == "units" else content
    ledger = based_on(ledger, folder)

    def apply() -> object:
        return into_folder.apply(folder, edit, ledger)

    def undo() -> object:
        return into_folder.undo(folder)

    def model() -> tuple[bytes, bytes]:
        now = snapshot(folder)
        return now["model.safetensors"], now["config.json"]

    before, plain = snapshot(folder), model()
    apply()
    after, edited = snapshot(folder), model()
    assert (edited[1] != plain[1]) == (kind == "units")
    undo()
    for call, start in ((apply, before), (undo, after)):
        number = 0
        while True:
            if start is after and model() != edited:
                apply()
            broken = interrupted(call, number)
            assert model() in (plain, edited), (call, number)
            if not broken:
                break
            number += 1
            finish = apply if completes == "apply" else undo
            with contextlib.suppress(UserError):  # Broken off behind its last change: done already.
                finish()
            assert snapshot(folder) == (after if completes == "apply" else before), number
            if start is before and completes == "apply":
                undo()
        assert number > 1
        if start is before:
            undo()


def test_calls_on_one_folder_wait_for_each_other(
    folder: Path, content: EditFile, ledger: dict[str, Any]
) -> None:
    ledger = based_on(ledger, folder)
    with ThreadPoolExecutor(2) as pool:
        with held_folder(folder):
            running = pool.submit(into_folder.apply, folder, content, ledger)
            with pytest.raises(TimeoutError):
                running.result(timeout=0.3)
        running.result(timeout=60)
    into_folder.undo(folder)


def test_a_damaged_record_is_named(folder: Path, content: EditFile, ledger: dict[str, Any]) -> None:
    into_folder.apply(folder, content, based_on(ledger, folder))
    record = folder / "text_encoder" / "edit.json"
    record.write_text(record.read_text().replace('"original": "', '"original": "0', 1))
    with pytest.raises(UserError, match=r"edit\.json: .*checksum does not fit.*move it away"):
        into_folder.undo(folder)


def test_an_edit_that_does_not_fit_is_refused(folder: Path, ledger: dict[str, Any]) -> None:
    before = snapshot(folder)
    ledger = based_on(ledger, folder)
    for deltas in ({7: np.ones((32, 64))}, {0: np.ones((32, 63))}):
        with pytest.raises(UserError, match="is not in this text encoder"):
            into_folder.apply(folder, pack(deltas), ledger)
    if load_file(folder / "text_encoder" / "model.safetensors").popitem()[1].dtype == np.float16:
        with pytest.raises(UserError, match="does not fit float16"):
            into_folder.apply(folder, pack({0: np.full((32, 64), 1e6)}), ledger)
    assert snapshot(folder) == before
    with pytest.raises(UserError, match="no such folder"):
        into_folder.undo(folder / "nowhere")


def test_a_copy_is_a_whole_edited_model_that_diffusers_draws_with(
    tiny_pipeline_folder: Path, content: EditFile, ledger: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    source, target = tmp_path / "source", tmp_path / "out" / "model"
    shutil.copytree(tiny_pipeline_folder, source)
    weights = source / "text_encoder" / "model.safetensors"
    shutil.copyfile(weights, weights.with_name("model.fp16.safetensors"))  # would not be edited
    before = snapshot(source)
    into_folder.write_copy(target, source, content, ledger)
    assert snapshot(source) == before
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert set(snapshot(target)) == {"config.json", "model.safetensors"}
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (target / unet).samefile(source / unet)

    oracle = StableDiffusionPipeline.from_pretrained(target)
    ours = load_pipeline(target)
    ids = oracle.tokenizer(["a photo of a dog"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        theirs = oracle.text_encoder(ids.input_ids).last_hidden_state.numpy()
    tokens = jnp.asarray(ids.input_ids.numpy(), jnp.int32)
    found = ours.encoder.model.apply({"params": ours.params["text_encoder"]}, tokens)
    hidden = np.asarray(found.last_hidden_state)
    assert np.abs(hidden - theirs).max() <= 1e-5 * np.abs(theirs).max()
    base = load_pipeline(source)
    plain = base.encoder.model.apply({"params": base.params["text_encoder"]}, tokens)
    assert np.abs(hidden - np.asarray(plain.last_hidden_state)).max() > 0.01

    with pytest.raises(UserError, match="is there already"):
        into_folder.write_copy(target, source, content, ledger)
