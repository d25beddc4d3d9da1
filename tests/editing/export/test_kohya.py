"""What other tools make of a file's names and metadata, by the rules that their code has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from emcid_jax.editing.export import lora
from emcid_jax.editing.export.edit_file import Edits, pack
from emcid_jax.pipelines.published_configs import default_configs

NONE = pack({})
EDITS: dict[str, tuple[Edits, str]] = {
    "sd1": ({"text_encoder": pack({3: np.eye(768, 12)})}, "SD1"),
    "sd2": ({"text_encoder": pack({3: np.eye(1024, 12)})}, "SD2"),
    "xl": (
        {"text_encoder": pack({3: np.eye(768, 12)}), "text_encoder_2": pack({5: np.eye(1280, 20)})},
        "SDXL",
    ),
    "xl, first": ({"text_encoder": pack({3: np.eye(768, 12)}), "text_encoder_2": NONE}, "SDXL"),
    "xl, second": ({"text_encoder": NONE, "text_encoder_2": pack({3: np.eye(1280, 20)})}, "SDXL"),
}
FORMS: dict[str, Callable[..., object]] = {
    "lora": lambda path, edits, ledger: lora.write_lora(path, edits, ledger, 1),
    "diff": lora.write_diff,
}


def invoke_base(path: Path) -> str:
    """InvokeAI's rule (`lora_token_vector_length`): the names in order, the latest width counts."""
    found = load_file(path)
    if all(name.startswith("lora_te1_") for name in found):
        return "FLUX"
    widths: dict[str, int | None] = {}
    for name, array in found.items():
        key, kind = name.split(".", 1)
        wide = array.shape[1] if kind in ("lora_down.weight", "diff") else None
        if key.startswith("lora_unet_") and key.endswith(("_attn2_to_k", "_attn2_to_v")):
            widths["one"] = wide
        elif key.startswith("lora_te") and "_self_attn_" in key:
            widths["one" if key.startswith("lora_te_") else key[:8]] = wide
        both = widths.get("lora_te1"), widths.get("lora_te2")
        total = widths.get("one") or (sum(both) if all(both) else 0)
        if total:
            return {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}[total]
    return "unknown"


def webui_version(path: Path) -> str:
    """A1111's and SD.Next's rule (`NetworkOnDisk.detect_version`)."""
    with safe_open(path, "np") as file:
        about = file.metadata()
    if about.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    return "SD2" if about.get("ss_v2") == "True" else "SD1"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EDITS)
def test_tools_know_the_family(kind: str, form: str, tmp_path: Path) -> None:
    path, (edits, family) = tmp_path / "file.safetensors", EDITS[kind]
    FORMS[form](path, edits, {"requests": []})
    assert invoke_base(path) == webui_version(path) == family
    marks = {name: array for name, array in load_file(path).items() if "_mlp_fc2." not in name}
    ups = [array for name, array in marks.items() if name.endswith("lora_up.weight")]
    assert len(marks) == 3
    assert not ups[0].any()


def test_the_mark_of_sdxl_is_a_weight_that_diffusers_knows(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    path = tmp_path / "lora.safetensors"
    lora.write_lora(path, EDITS["xl"][0], {"requests": []}, 0)
    with torch.device("meta"):
        config = default_configs("xl", "epsilon")["unet"]
        unet = UNet2DConditionModel.from_config(config)
    found, *_ = StableDiffusionXLPipeline.lora_state_dict(
        {name: torch.from_numpy(array) for name, array in load_file(path).items()},
        unet_config=unet.config,
    )
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    down = found[f"unet.{name}.processor.to_k_lora.down.weight"]
    up = found[f"unet.{name}.processor.to_k_lora.up.weight"]
    assert sum(key.startswith("unet.") for key in found) == 2
    assert (up @ down).shape == unet.get_submodule(name).to_k.weight.shape


@pytest.mark.parametrize("form", FORMS)
def test_metadata(form: str, small_ledger: Callable[..., Any], tmp_path: Path) -> None:
    path, ledger = tmp_path / "file.safetensors", small_ledger(3)

    def about(edits: Edits) -> dict[str, str]:
        FORMS[form](path, edits, ledger)
        with safe_open(path, "np") as file:
            return file.metadata()

    found = about(EDITS["sd1"][0])
    # What modelspec 1.0.1 requires.
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.implementation"] == "diffusers"
    assert found["modelspec.title"] == "EMCID: dog -> cat"
    assert found["modelspec.resolution"] == "512x512"
    assert about(EDITS["xl"][0])["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    ledger["requests"] *= 300
    described = about(EDITS["sd2"][0])
    assert "modelspec.architecture" not in described  # It has two kinds.
    assert described["modelspec.title"] == "EMCID: 300 concepts"
    assert described["modelspec.description"].count("dog -> cat") == 10
    assert described["modelspec.description"].endswith("; and 290 more.")
    # Of sizes that nobody published, nothing is claimed.
    unknown = about({"text_encoder": pack({1: np.eye(32, 64)})})
    assert not {"ss_base_model_version", "modelspec.architecture"} & unknown.keys()
    assert set(load_file(path)) == {
        f"lora_te_text_model_encoder_layers_1_mlp_fc2.{part}"
        for part in (
            ["diff"] if form == "diff" else ["alpha", "lora_down.weight", "lora_up.weight"]
        )
    }
