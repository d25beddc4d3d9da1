"""The LoRA: diffusers loads it, and the encoder computes what the edited weights compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import CLIPTextModel

from emcid_jax.editing.export import into_folder, lora
from emcid_jax.editing.export.edit_file import EditFile, pack
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.runtime.errors import UserError

LAYERS = (1, 3)
LEDGER = {"requests": []}  # Of which only the metadata tell.


@pytest.fixture(scope="module")
def content() -> EditFile:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 32, 6)), rng.standard_normal((2, 6, 64))
    return pack({layer: 0.05 * factors[0][i] @ factors[1][i] for i, layer in enumerate(LAYERS)})


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.mark.filterwarnings("ignore")  # What diffusers and peft warn about is not ours.
@pytest.mark.parametrize("rank", [0, 3])
def test_diffusers_computes_the_hidden_states_of_the_edited_weights(
    content: EditFile, pipeline: Pipeline, rank: int, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    path = tmp_path / "lora.safetensors"
    lora.write_lora(path, content, LEDGER, rank)
    ids = torch.from_numpy(tokenize(pipeline.encoder.tokenizer, ["a photo of a dog", "art"])).long()
    with torch.no_grad():
        plain = StableDiffusionPipeline.from_pretrained(pipeline.folder, safety_checker=None)
        base = plain.text_encoder(ids).last_hidden_state
        plain.load_lora_weights(str(tmp_path), weight_name=path.name)
        found = plain.text_encoder(ids).last_hidden_state
        edited = StableDiffusionPipeline.from_pretrained(pipeline.folder, safety_checker=None)
        weights = edited.text_encoder.state_dict()
        for layer, delta in content.deltas().items():
            left, values, right = np.linalg.svd(delta)
            kept = rank or 6
            part = (left[:, :kept] * values[:kept]) @ right[:kept]
            name = next(n for n in weights if n.endswith(f"layers.{layer}.mlp.fc2.weight"))
            weights[name] += torch.from_numpy(part).float()
        wanted = edited.text_encoder(ids).last_hidden_state
    assert (found - base).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_layers_of_different_ranks_are_all_added_at_full_strength(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Diffusers scales by one alpha: a layer of another rank would be added in part."""
    from diffusers import StableDiffusionPipeline

    rng = np.random.default_rng(5)
    deltas = {
        layer: 0.05 * rng.standard_normal((32, rank)) @ rng.standard_normal((rank, 64))
        for layer, rank in ((0, 1), (1, 6), (3, 6))
    }
    lora.write_lora(tmp_path / "lora.safetensors", pack(deltas), LEDGER, 0)
    ids = torch.from_numpy(tokenize(pipeline.encoder.tokenizer, ["a photo of a dog", "art"])).long()
    plain = StableDiffusionPipeline.from_pretrained(pipeline.folder, safety_checker=None)
    plain.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    edited = CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder")
    weights = edited.state_dict()
    for layer, delta in deltas.items():
        name = next(n for n in weights if n.endswith(f"layers.{layer}.mlp.fc2.weight"))
        weights[name] += torch.from_numpy(delta).float()
    with torch.no_grad():
        found = plain.text_encoder(ids).last_hidden_state
        wanted = edited(ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_error_is_the_best_of_its_rank_and_stated(content: EditFile, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for rank, dtype, slack in ((4, "float32", 1e-6), (4, "float16", 1e-3), (0, "float32", 1e-6)):
        for layer in lora.write_lora(path, content, LEDGER, rank, dtype):
            delta = content.deltas()[layer.layer]
            values = np.linalg.svd(delta, compute_uv=False)
            best = np.linalg.norm(values[rank or 6 :]) / np.linalg.norm(values)
            assert layer.rank == (rank or 6)
            assert layer.error == pytest.approx(best, abs=slack)
        arrays = load_file(path)
        assert {array.dtype.name for array in arrays.values()} == {dtype}
        # Names as kohya's trainers write them.
        assert set(arrays) == {
            f"lora_te_text_model_encoder_layers_{layer}_mlp_fc2.{part}"
            for layer in LAYERS
            for part in ("lora_up.weight", "lora_down.weight", "alpha")
        }


def added(path: Path, encoder: torch.nn.Module) -> torch.nn.Module:
    """What ComfyUI and A1111 do: a tensor `<key>.diff` is added to the weight of that key.

    Keys are `lora_te_` and the path of the module in the encoder, with `_` for dots.
    """
    modules = {
        "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_"): module
        for name, module in encoder.named_modules()
    }
    for name, diff in load_file(path).items():
        key, kind = name.rsplit(".", 1)
        assert kind == "diff"
        modules[key].get_parameter("weight").data += torch.from_numpy(diff).float()
    return encoder


def test_differences_are_the_edit_itself(
    content: EditFile, pipeline: Pipeline, tmp_path: Path
) -> None:
    path, folder = tmp_path / "diff.safetensors", tmp_path / "model"
    lora.write_diff(path, content, LEDGER)
    shutil.copytree(pipeline.folder / "text_encoder", folder / "text_encoder")
    base = {"text_encoder": params_hash(pipeline.params["text_encoder"])}
    into_folder.apply(folder, content, {"base": base})
    found = added(path, CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder"))
    wanted = CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict()
    for name, weight in found.state_dict().items():
        # Added in float32 there, in float64 and rounded once here.
        torch.testing.assert_close(weight, wanted[name], rtol=2e-7, atol=1e-8)
    lora.write_diff(path, content, LEDGER, "float16")
    assert {array.dtype.name for array in load_file(path).values()} == {"float16"}


@pytest.mark.filterwarnings("ignore")
def test_diffusers_refuses_differences(
    content: EditFile, pipeline: Pipeline, tmp_path: Path
) -> None:
    """As docs/tools.md says: should it learn to load them, the table can say so."""
    from diffusers import StableDiffusionPipeline

    lora.write_diff(tmp_path / "diff.safetensors", content, LEDGER)
    plain = StableDiffusionPipeline.from_pretrained(pipeline.folder, safety_checker=None)
    with pytest.raises(ValueError, match=r"layers_1_mlp_fc2\.diff"):
        plain.load_lora_weights(str(tmp_path), weight_name="diff.safetensors")


def test_values_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    path, large = tmp_path / "large.safetensors", pack({0: np.full((9, 9), 1e12)})
    with pytest.raises(UserError, match="does not fit float16"):
        lora.write_diff(path, large, LEDGER, "float16")
    with pytest.raises(UserError, match="does not fit float16"):
        lora.write_lora(path, large, LEDGER, 1, "float16")
    assert list(tmp_path.iterdir()) == []
