"""Both encoders of SDXL as folders and as the files of ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import xl_states
from emcid_jax.editing.export import stored_weights, text_encoder
from emcid_jax.editing.export.edit_file import Edits
from emcid_jax.editing.stage_two import solve
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.pipelines.pipeline import Pipeline

CLASSES = {
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}


def read(folders: dict[str, Path], tiny: Path) -> Any:
    parts = {part: CLASSES[part].from_pretrained(folder) for part, folder in folders.items()}
    return xl_states.load(tiny, **parts)


@pytest.mark.parametrize("dtype", ["source", "float16"])
def test_folders_load_in_transformers(
    dtype: str, xl_pipeline: Pipeline, xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    folders = {}
    for encoder in xl_pipeline.encoders:
        edit = WeightEdit(xl_edits[encoder.name].deltas(), StageTwoReport((), 0.0, 0.0))
        params = solve.apply_edit(encoder.params, edit)
        folders[encoder.name] = target = tmp_path / encoder.name
        source = tiny_xl_folder / encoder.name
        text_encoder.write_text_encoder(target, params, source, dtype)
        named, base = (load_file(folder / "model.safetensors") for folder in (target, source))
        wanted = {"source": "float32", "float16": "float16"}[dtype]
        assert {array.dtype.name for array in named.values()} == {wanted}
        assert ("text_projection.weight" in named) == (encoder.name == "text_encoder_2")
        assert len(named) == len(base)
        config = json.loads((target / "config.json").read_text())
        assert config["projection_dim"] == encoder.model.config.projection_dim
    most = {"source": 1e-6, "float16": 0.01}[dtype]
    pipe = read(folders, tiny_xl_folder).to(torch.float32)
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, xl_edits), most)
    xl_states.assert_differs(pipe, xl_states.load(tiny_xl_folder))


def test_clip_files_have_the_names_that_comfyui_tells_them_by(
    xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    folders = {}
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        arrays = stored_weights.read_weights(tiny_xl_folder, part=part).arrays
        edited = stored_weights.add_deltas(arrays, xl_edits[part])
        file = tmp_path / name / "model.safetensors"
        file.parent.mkdir()
        text_encoder.write_clip(file, edited)
        named = load_file(file)
        # `text_model.` before all: without a prefix of their own they are those of transformers,
        # and the projection of clip_g is a linear layer's weight, (out, in).
        outside = {n for n in named if not n.startswith("text_model.")}
        assert outside == ({"text_projection.weight"} if name == "clip_g" else set())
        last = {"clip_l": 3, "clip_g": 4}[name]
        assert f"text_model.encoder.layers.{last}.mlp.fc1.weight" in named
        if name == "clip_g":
            assert named["text_projection.weight"].shape == (40, 48)
            np.testing.assert_array_equal(
                named["text_projection.weight"], arrays["text_projection.weight"]
            )
        config = (tiny_xl_folder / part / "config.json").read_bytes()
        (file.parent / "config.json").write_bytes(config)
        folders[part] = file.parent
    pipe = read(folders, tiny_xl_folder)
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, xl_edits))
