"""Single files of Stable Diffusion XL, in a layout written by hand, against diffusers' loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from emcid_jax.models.weights.safetensors_files import read_header
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.pipelines.sources import find_model
from emcid_jax.runtime.errors import UserError
from ldm_xl import CLIP_L, OPEN_CLIP, REFINER_CLIP, ldm_xl, open_clip

PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


@pytest.fixture
def beside(tiny_xl_folder: Path, tmp_path: Path) -> Path:
    """A folder with the tiny model's configs and tokenizers, but no weights."""
    folder = tmp_path / "models"
    ignored = shutil.ignore_patterns("*.safetensors", "model_index*")
    shutil.copytree(tiny_xl_folder, folder, ignore=ignored)
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_single_file_is_the_folder_it_was_made_from(
    dtype: Any, tiny_xl_folder: Path, beside: Path, tmp_path: Path
) -> None:
    tensors = ldm_xl(tiny_xl_folder)
    stored = {k: a.astype(dtype) if a.dtype == np.float32 else a for k, a in tensors.items()}
    save_file(stored, beside / "model.safetensors")
    assert ldm_keys.version_of(read_header(beside / "model.safetensors").shapes, "x") == "xl"
    folder = find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache")
    for part in PARTS:
        (file,) = (folder / part).glob("*.safetensors")
        found, original = load_file(file), load_file(tiny_xl_folder / part / file.name)
        plain = {name.removeprefix("text_model."): array for name, array in original.items()}
        assert {name.removeprefix("text_model.") for name in found} == plain.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(
                array, plain[name.removeprefix("text_model.")].astype(dtype)
            )
    index = json.loads((folder / "model_index.json").read_text())
    theirs = json.loads((tiny_xl_folder / "model_index.json").read_text())
    assert {k: v for k, v in index.items() if k[:5] != "_diff"} == {
        key: value for key, value in theirs.items() if key[:5] != "_diff"
    }
    pipeline = load_pipeline(folder)
    pads = {name: one.pad_token for name, one in pipeline.tokenizers.items()}  # type: ignore[attr-defined]
    assert pads == {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}


def test_diffusers_reads_the_same_from_the_single_file(
    tiny_xl_folder: Path, beside: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    file = beside / "model.safetensors"
    save_file(ldm_xl(tiny_xl_folder), file)
    theirs = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(tiny_xl_folder), local_files_only=True, add_watermarker=False
    )
    folder = find_model(str(file), cache=tmp_path / "cache")
    ours = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    for part in PARTS:
        expected = getattr(theirs, part).state_dict()
        found = getattr(ours, part).state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        states = [pipe.encode_prompt("a red dog in the snow") for pipe in (ours, theirs)]
    for one, other in zip(*states, strict=True):
        assert torch.equal(one, other)
    # The converted folder's own states, and what the model's own forward pass gives.
    pipeline = load_pipeline(folder)
    for encoder, part in zip(pipeline.encoders, PARTS[:2], strict=True):
        ids = np.asarray(encoder.tokenizer(["a red dog"], padding="max_length")["input_ids"])
        out: Any = encoder.model.apply({"params": encoder.params}, jnp.asarray(ids, jnp.int32))
        expected = getattr(theirs, part)(torch.tensor(ids), output_hidden_states=True)
        states = expected.hidden_states[-2].detach().numpy()
        np.testing.assert_allclose(out.hidden[-2], states, rtol=1e-4, atol=1e-4)


def refused(tensors: dict[str, np.ndarray], folder: Path, message: str) -> None:
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        find_model(str(folder / "model.safetensors"), cache=folder / "cache")
    assert not [path for path in (folder / "cache").glob("*") if path.is_dir()]


def test_what_is_not_the_model_is_named(tiny_xl_folder: Path, beside: Path) -> None:
    tensors = ldm_xl(tiny_xl_folder)
    projection = f"{OPEN_CLIP}text_projection"
    sizes = "model.diffusion_model.label_emb.0.0.weight"
    last = f"{OPEN_CLIP}transformer.resblocks.3.mlp.c_proj.bias"
    for key in (projection, sizes, last):
        rest = {name: array for name, array in tensors.items() if name != key}
        refused(rest, beside, f"not the weights of Stable Diffusion XL: {key} is missing")
    # Stored as a linear layer it would be read the wrong way round.
    turned = tensors | {projection: np.ascontiguousarray(tensors[projection].T)}
    refused(turned, beside, rf"{projection} has shape \(40, 48\), expected \(48, 40\)")
    one = {name: a for name, a in tensors.items() if not name.startswith(CLIP_L)}
    refused(one, beside, "so no text encoder; only Stable Diffusion 1.x, 2.x and XL")
    nan = tensors | {last: np.full(48, np.nan, np.float32)}
    refused(nan, beside, f"{last} holds NaN")


def test_the_refiner_is_known_and_draws_nothing(tiny_xl_folder: Path, beside: Path) -> None:
    unet = {
        name: array
        for name, array in ldm_xl(tiny_xl_folder).items()
        if name.startswith(("model.", "first_stage_model."))
    }
    tensors = unet | open_clip(tiny_xl_folder, REFINER_CLIP)
    refused(tensors, beside, "is Stable Diffusion XL's refiner, .*give the base model's file")
    shapes = {name: array.shape for name, array in tensors.items()}
    assert ldm_keys.version_of(shapes, "x") == "refiner"
    place = ldm_keys.locate_text(
        "text_model.encoder.layers.2.mlp.fc2.weight", "text_encoder_2", "refiner", tensors
    )
    assert place.key == f"{REFINER_CLIP}transformer.resblocks.2.mlp.c_proj.weight"


def test_other_conditions_are_not_taken_for_xl(tiny_xl_folder: Path, beside: Path) -> None:
    tensors = ldm_xl(tiny_xl_folder)
    first = {
        name.replace("conditioner.embedders.0", "cond_stage_model"): array
        for name, array in tensors.items()
        if not name.startswith(OPEN_CLIP)
    }
    refused(first, beside, "label_emb.* belongs to a model with further conditions")


def test_configs_that_do_not_fit_are_refused(tiny_xl_folder: Path, beside: Path) -> None:
    file = beside / "text_encoder_2/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"projection_dim": 41}))
    refused(ldm_xl(tiny_xl_folder), beside, "embeddings_input_dim=88 is not 41, the width of the")


def test_a_file_says_that_it_predicts_velocity(
    tiny_xl_folder: Path, beside: Path, tmp_path: Path
) -> None:
    def scheduler(name: str, marks: tuple[str, ...], **options: Any) -> dict[str, Any]:
        tensors = ldm_xl(tiny_xl_folder) | {mark: np.zeros(0, np.float32) for mark in marks}
        save_file(tensors, beside / f"{name}.safetensors")
        folder = find_model(
            str(beside / f"{name}.safetensors"), cache=tmp_path / "cache", **options
        )
        return json.loads((folder / "scheduler/scheduler_config.json").read_text())

    shutil.rmtree(beside / "scheduler")
    plain = scheduler("plain", ())
    assert plain == default_configs("xl", "epsilon")["scheduler"]
    velocity = plain | {"prediction_type": "v_prediction"}
    assert scheduler("velocity", ("v_pred",)) == velocity
    zero = scheduler("zero", ("v_pred", "ztsnr"))
    assert zero == velocity | {"rescale_betas_zero_snr": True}
    assert scheduler("told", (), prediction="v_prediction") == velocity
    with pytest.raises(UserError, match="edm_mean belongs to a model of another noise schedule"):
        scheduler("edm", ("edm_mean",))
