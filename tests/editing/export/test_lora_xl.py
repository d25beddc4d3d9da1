"""Both encoders of SDXL in one LoRA or one file of differences, as stock loaders read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import xl_states
from emcid_jax.editing.export import lora
from emcid_jax.editing.export.edit_file import Edits, pack

# What diffusers and peft warn about is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("rank", [0, 40, 2])
def test_diffusers_computes_what_the_edited_weights_compute(
    rank: int, xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    # The first encoder has 32 directions: at a rank of 40 or 48 its pairs are filled with zeros.
    layers = lora.write_lora(tmp_path / "lora.safetensors", xl_edits, {"requests": []}, rank)
    assert {layer.rank for layer in layers} == {rank or 48}
    cut = {}
    for part, edit in xl_edits.items():
        kept = {}
        for layer, delta in edit.deltas().items():
            left, values, right = np.linalg.svd(delta, full_matrices=False)
            size = rank or 48
            kept[layer] = (left[:, :size] * values[:size]) @ right[:size]
        cut[part] = pack(kept)
    pipe = xl_states.load(tiny_xl_folder)
    base = xl_states.load(tiny_xl_folder)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, cut), 1e-5)
    xl_states.assert_differs(pipe, base)
    stated = {(one.part, one.layer): one.error for one in layers}
    for (part, layer), error in stated.items():
        values = np.linalg.svd(xl_edits[part].deltas()[layer], compute_uv=False)
        best = np.linalg.norm(values[rank or 48 :]) / np.linalg.norm(values)
        assert error == pytest.approx(best, abs=1e-6)


def test_names_are_those_of_kohya(xl_edits: Edits, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    lora.write_lora(path, xl_edits, {"requests": []}, 2)
    modules = [f"lora_te1_text_model_encoder_layers_{i}_mlp_fc2" for i in (0, 1)]
    modules += [f"lora_te2_text_model_encoder_layers_{i}_mlp_fc2" for i in (1, 2)]
    parts = ("lora_up.weight", "lora_down.weight", "alpha")
    assert set(load_file(path)) == {f"{name}.{part}" for name in modules for part in parts}


@pytest.mark.parametrize(("kind", "tensors"), [("xl_edits", 4), ("xl_units", 8)])
def test_differences_are_the_edit_itself(
    kind: str, tensors: int, tiny_xl_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """ComfyUI adds `<key>.diff` to the weight of that key and `.diff_b` to its bias: clip_l is te1,
    clip_g is te2."""
    path, edits = tmp_path / "diff.safetensors", request.getfixturevalue(kind)
    lora.write_diff(path, edits, {"requests": []})
    pipe = xl_states.load(tiny_xl_folder)
    modules = {}
    for number, encoder in ((1, pipe.text_encoder), (2, pipe.text_encoder_2)):
        for name, module in encoder.named_modules():
            key = name.removeprefix("text_model.").replace(".", "_")
            modules[f"lora_te{number}_text_model_{key}"] = module
    found = load_file(path)
    assert len(found) == tensors
    for name, diff in found.items():
        key, part = name.rsplit(".", 1)
        parameter = {"diff": "weight", "diff_b": "bias"}[part]
        modules[key].get_parameter(parameter).data += torch.from_numpy(diff)
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, edits), 1e-6)
