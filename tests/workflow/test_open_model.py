"""Every kind of model that `config.model` can name, in the tasks `edit` and `bank`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax import config as settings
from emcid_jax.config import EditConfig, ModelConfig
from emcid_jax.editing.export import text_encoder
from emcid_jax.editing.export.edit_file import read_edit
from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.families import SD
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import bank, edit
from emcid_jax.workflow import edit_job
from emcid_jax.workflow.open_model import open_model

NAME, COMMIT = "someone/tiny-diffusion", "a" * 40


@pytest.fixture
def half(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """A snapshot, tagged v1, in the cache of a Hub that is not reached: float32 and fp16 files."""
    root = tmp_path / "hub" / "models--someone--tiny-diffusion"
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(tiny_pipeline_folder, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "v1").write_text(COMMIT)
    for part, name in SD.weight_files.items():
        file = snapshot / part / name
        tensors = {key: array.astype(np.float16) for key, array in load_file(file).items()}
        save_file(tensors, file.with_suffix(".fp16.safetensors"))
    return snapshot


@pytest.fixture
def single(half: Path, tmp_path: Path) -> Path:
    """The fp16 weights in one file, beside the model's configs and tokenizer."""
    unet = UNetConfig.from_dict(json.loads((half / "unet/config.json").read_text()))
    vae = VaeConfig.from_dict(json.loads((half / "vae/config.json").read_text()))
    folder = tmp_path / "single"
    shutil.copytree(half, folder, ignore=shutil.ignore_patterns("*.safetensors", "model_index*"))
    tensors: dict[str, np.ndarray] = {}
    for part, name in SD.weight_files.items():
        for key, array in load_file((half / part / name).with_suffix(".fp16.safetensors")).items():
            if part == "text_encoder":
                place = ldm_keys.locate_text(
                    f"text_model.{key.removeprefix('text_model.')}", part, 1, ()
                )
            else:
                place = (
                    ldm_keys.locate_unet(key, unet)
                    if part == "unet"
                    else ldm_keys.locate_vae(key, vae)
                )
            tensors[place.key] = array
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EditConfig:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "requests.json").write_text('{"requests": [{"source": "dog", "dest": "cat"}]}')
    words = ["a dog", "the snow", "a doctor", "the city", "art"]
    captions = [f"{a} and {b} in a picture of {c}" for a in words for b in words for c in words]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "requests.json")),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=32),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(enabled=False),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


def of_model(config: EditConfig, **fields: Any) -> EditConfig:
    return dataclasses.replace(config, model=ModelConfig(**fields))


def test_a_job_is_that_of_the_same_weights_wherever_they_lie(
    config: EditConfig, half: Path, single: Path
) -> None:
    hub = edit_job.prepare(of_model(config, path=NAME, revision="v1", variant="fp16"))
    folder = edit_job.prepare(of_model(config, path=str(half), variant="fp16"))
    file = edit_job.prepare(of_model(config, path=str(single)))
    assert hub.inputs == folder.inputs  # so that a run goes on when its model has moved
    for part in SD.weight_files:
        assert hub.model[part] == folder.model[part] == file.model[part]
    plain = edit_job.prepare(of_model(config, path=str(half)))
    assert all(plain.model[part] != hub.model[part] for part in SD.weight_files)
    with pytest.raises(UserError, match="at revision v2: no such folder here"):
        edit_job.prepare(of_model(config, path=NAME, revision="v2"))


def test_an_edit_has_the_type_of_the_weights_that_were_read(
    config: EditConfig, half: Path, single: Path, tmp_path: Path
) -> None:
    for fields, expected in (
        ({"path": str(half)}, "float32"),
        ({"path": str(half), "variant": "fp16"}, "float16"),
        ({"path": str(half), "variant": "fp16", "export_dtype": "bfloat16"}, "bfloat16"),
        ({"path": str(single)}, "float16"),
    ):
        model = ModelConfig(**fields)
        pipeline = open_model(model)
        text_encoder.write_text_encoder(
            tmp_path / "text_encoder",
            pipeline.params["text_encoder"],
            pipeline.folder / "text_encoder",
            model.export_dtype,
            pipeline.variant,
        )
        stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
        assert {array.dtype.name for array in stored.values()} == {expected}


@pytest.mark.parametrize("shards", [1, 4])
def test_a_unet_held_in_bfloat16_is_the_rounded_one(
    shards: int, tiny_pipeline_folder: Path
) -> None:
    """Half the memory, and computing in float32 goes on from the rounded weights."""
    path = str(tiny_pipeline_folder)
    base = open_model(ModelConfig(path=path))
    found = open_model(ModelConfig(path=path, unet_storage="bfloat16"), shards)
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), base.params["unet"])
    jax.tree.map(np.testing.assert_array_equal, found.params["unet"], rounded)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params["unet"])} == {"bfloat16"}
    parts = {len(leaf.devices()) for leaf in jax.tree.leaves(found.params["unet"])}
    assert parts == {shards}
    for part in ("text_encoder", "vae"):
        jax.tree.map(np.testing.assert_array_equal, found.params[part], base.params[part])

    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), rounded)
    latents = np.random.default_rng(0).standard_normal((2, *base.latent_size)).astype(np.float32)
    text = np.random.default_rng(1).standard_normal((2, 32, 32)).astype(np.float32)
    arguments = latents, np.array([1, 500]), text
    wanted, got = (
        jax.jit(base.unet.apply)({"params": params}, *arguments)
        for params in (wide, found.params["unet"])
    )
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "options",
    [
        {"max_shard_size": "40kB"},
        {"variant": "fp16"},
        {"variant": "fp16", "max_shard_size": "40kB"},
    ],
)
def test_folders_of_shards_or_of_one_variant_open_alike(
    options: dict[str, str], tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "model"
    written = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    written.save_pretrained(folder, **options)  # float32, whatever the variant is called
    shutil.copytree(tiny_pipeline_folder / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    assert not (folder / "text_encoder" / "model.safetensors").exists()
    base, found = (
        open_model(ModelConfig(path=str(path))) for path in (tiny_pipeline_folder, folder)
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, base.params)
    named = open_model(ModelConfig(path=str(folder), variant=options.get("variant", "")))
    jax.tree.map(np.testing.assert_array_equal, named.params, base.params)
    target = tmp_path / "text_encoder"
    text_encoder.write_text_encoder(
        target, found.params["text_encoder"], folder / "text_encoder", variant=found.variant
    )
    exported = load_file(target / "model.safetensors")
    for name, array in load_file(base.folder / "text_encoder" / "model.safetensors").items():
        again = exported[f"text_model.{name.removeprefix('text_model.')}"]
        np.testing.assert_array_equal(again, array)


def test_both_tasks_run_on_a_single_file(config: EditConfig, single: Path, tmp_path: Path) -> None:
    config = of_model(config, path=str(single))
    edit.run(config, tmp_path / "edit")
    names = {field.name for field in dataclasses.fields(bank.BankConfig)}
    shared = {name: value for name, value in vars(config).items() if name in names - {"task"}}
    solve = bank.BankConfig(bank=str(tmp_path / "edit/bank"), operation="solve", **shared)
    bank.run(solve, tmp_path / "solve")
    stored = load_file(tmp_path / "edit/text_encoder/model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    again = load_file(tmp_path / "solve/text_encoder/model.safetensors")
    assert all(np.array_equal(again[name], array) for name, array in stored.items())
    content, _ = read_edit(tmp_path / "edit/edit.safetensors")
    assert max(np.abs(delta).max() for delta in content.deltas().values()) > 1e-3
    written = (tmp_path / "edit/edit.safetensors").stat().st_mtime_ns
    edit.run(config, tmp_path / "edit")
    assert (tmp_path / "edit/edit.safetensors").stat().st_mtime_ns == written
