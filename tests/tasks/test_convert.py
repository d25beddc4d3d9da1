"""Convert once: the same model from an Orbax folder, and nothing half done."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from emcid_jax.config import ModelConfig
from emcid_jax.editing.bank.memories import model_hashes
from emcid_jax.editing.export import text_encoder
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checkpoints
from emcid_jax.tasks import convert
from emcid_jax.tasks.convert import ConvertConfig
from emcid_jax.workflow.inputs import require_model


def test_the_converted_folder_is_the_same_model_on_any_mesh(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "converted"
    config = ConvertConfig(model=ModelConfig(path=str(tiny_pipeline_folder)))
    convert.run(config, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    assert not list(folder.rglob("*.safetensors"))

    base = load_pipeline(tiny_pipeline_folder)
    everywhere = parallel.replicated(parallel.make_mesh(jax.devices()[:2]))
    found = load_pipeline(
        require_model(ModelConfig(path=str(folder))),
        held=lambda shapes: parallel.shapes(shapes, everywhere),
    )
    # Requests, memories and edits of the one are those of the other.
    assert model_hashes(found) == model_hashes(base)
    leaf = jax.tree.leaves(found.params)[0]
    assert leaf.sharding.is_equivalent_to(everywhere, leaf.ndim)

    text = found.params["text_encoder"]
    text_encoder.write_text_encoder(tmp_path / "text_encoder", text, folder / "text_encoder")
    stored = load_file(tiny_pipeline_folder / "text_encoder" / "model.safetensors")
    for name, array in load_file(tmp_path / "text_encoder" / "model.safetensors").items():
        wanted = stored.get(name, stored.get(name.removeprefix("text_model.")))
        np.testing.assert_array_equal(array, wanted)

    with pytest.raises(UserError, match=r"--workdir is .*converted.* a model's folder"):
        convert.run(config, folder)


def test_the_stored_type_is_that_of_the_variant_that_is_read(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "source", tmp_path / "converted"
    shutil.copytree(tiny_pipeline_folder, source)
    for file in list(source.rglob("*model.safetensors")):
        half = {name: array.astype(np.float16) for name, array in load_file(file).items()}
        save_file(half, file.with_suffix(".fp16.safetensors"))  # float32 stays beside it
    convert.run(ConvertConfig(model=ModelConfig(path=str(source), variant="fp16")), folder)

    assert model_hashes(load_pipeline(folder)) == model_hashes(
        load_pipeline(source, variant="fp16")
    )
    assert json.loads((folder / "text_encoder/config.json").read_text())["dtype"] == "float16"
    metadata: Any = ocp.metadata(str(folder / checkpoints.WEIGHTS)).metadata
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(metadata)}
    assert kinds == {"float16"}


def test_every_tensor_keeps_its_stored_type(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "converted"
    shutil.copytree(tiny_pipeline_folder, source)
    for (
        part,
        name,
    ) in SD.weight_files.items():  # The first tensor of each part is in half precision.
        arrays = load_file(source / part / name)
        first = min(arrays)
        save_file(arrays | {first: arrays[first].astype(np.float16)}, source / part / name)
    convert.run(ConvertConfig(model=ModelConfig(path=str(source))), folder)
    base, found = load_pipeline(source), load_pipeline(folder)
    assert model_hashes(found) == model_hashes(base)
    metadata: Any = ocp.metadata(str(folder / checkpoints.WEIGHTS)).metadata
    kinds = Counter(str(leaf.dtype) for leaf in jax.tree.leaves(metadata))
    assert kinds == {"float16": 3, "float32": len(jax.tree.leaves(base.params)) - 3}

    # And so does what is exported from it.
    text = found.params["text_encoder"]
    text_encoder.write_text_encoder(tmp_path / "text_encoder", text, folder / "text_encoder")
    exported = load_file(tmp_path / "text_encoder" / "model.safetensors")
    for name, array in load_file(source / "text_encoder" / "model.safetensors").items():
        again = exported[f"text_model.{name.removeprefix('text_model.')}"]
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)


def test_a_model_that_is_damaged_leaves_nothing(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_pipeline_folder, source)
    file = source / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    name = next(iter(arrays))
    save_file(arrays | {name: np.full_like(arrays[name], np.nan)}, file)
    with pytest.raises(UserError, match=name):
        convert.run(ConvertConfig(model=ModelConfig(path=str(source))), tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
