"""Single-file checkpoints, written in LDM's names from the tiny pipeline, read back exactly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.text.tokenizer import load_tokenizer, tokenize
from emcid_jax.models.weights.safetensors_files import read_header
from emcid_jax.pipelines import ldm_keys, single_file
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.single_file import source_hash
from emcid_jax.pipelines.sources import find_model
from emcid_jax.runtime.errors import UserError

TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def ldm_tensors(folder: Path, version: ldm_keys.Version) -> dict[str, np.ndarray]:
    """The weights of a diffusers folder under the keys of a single file, and what else is there."""
    unet = UNetConfig.from_dict(json.loads((folder / "unet/config.json").read_text()))
    vae = VaeConfig.from_dict(json.loads((folder / "vae/config.json").read_text()))
    locate: dict[str, Callable[[str], ldm_keys.Place]] = {
        "text_encoder": lambda n: ldm_keys.locate_text(
            f"text_model.{n.removeprefix('text_model.')}", FIRST, version, ()
        ),
        "unet": lambda n: ldm_keys.locate_unet(n, unet),
        "vae": lambda n: ldm_keys.locate_vae(n, vae),
    }
    tensors: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for part, file in SD.weight_files.items():
        for name, array in load_file(folder / part / file).items():
            key, third, _ = locate[part](name)
            if third is not None:
                stacks.setdefault(key, {})[third] = array
            else:
                square = part == "vae" and "attn_1" in key and array.ndim == 2
                tensors[key] = array[:, :, None, None] if square else array
    tensors |= {k: np.concatenate([stack[i] for i in range(3)]) for k, stack in stacks.items()}
    leftovers = {"alphas_cumprod": np.ones(7, np.float32), "model_ema.decay": np.float32([0.9])}
    if version == 1:
        ids = np.arange(32)[None]
        leftovers["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    else:
        leftovers["cond_stage_model.model.text_projection"] = np.ones((32, 32), np.float32)
        leftovers["cond_stage_model.model.transformer.resblocks.4.ln_1.bias"] = np.ones(32, "f")
    return tensors | leftovers


@pytest.fixture
def beside(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """A folder with the tiny pipeline's configs and tokenizer, but no weights."""
    folder = tmp_path / "models"
    shutil.copytree(
        tiny_pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "model_index*")
    )
    return folder


def leaves(folder: Path) -> dict[str, np.ndarray]:
    params = load_pipeline(folder).params
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.mark.parametrize(
    ("version", "dtype"), [(1, np.float32), (1, np.float16), (2, ml_dtypes.bfloat16)]
)
def test_a_single_file_is_the_folder_it_was_made_from(
    version: ldm_keys.Version, dtype: Any, tiny_pipeline_folder: Path, beside: Path, tmp_path: Path
) -> None:
    tensors = ldm_tensors(tiny_pipeline_folder, version)
    floats = {k: a.astype(dtype) if a.dtype == np.float32 else a for k, a in tensors.items()}
    save_file(floats, beside / "model.safetensors")

    folder = find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache")
    expected = leaves(tiny_pipeline_folder)
    found = leaves(folder)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].astype(dtype).astype(np.float32))
    stored = read_header(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(stored.kinds.values()) == {{2: "F16", 4: "F32"}.get(np.dtype(dtype).itemsize)} or (
        set(stored.kinds.values()) == {"BF16"}
    )

    written = (folder / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache") == folder
    assert (folder / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    save_file(floats | {CONV_IN: floats[CONV_IN] * 0}, beside / "model.safetensors")
    assert find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache") != folder


def test_another_file_of_the_same_size_and_time_is_another_model(
    tiny_pipeline_folder: Path, beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = beside / "model.safetensors", tmp_path / "cache"
    tensors = ldm_tensors(tiny_pipeline_folder, 1)
    save_file(tensors, file)
    os.utime(file, ns=(10**18, 10**18))
    first, before = find_model(str(file), cache=cache), file.stat()
    shutil.copy2(file, beside / "kept")
    save_file(tensors | {CONV_IN: tensors[CONV_IN] + 1}, file)
    os.utime(file, ns=(10**18, 10**18))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = find_model(str(file), cache=cache)
    weights = [load_file(x / "unet/diffusion_pytorch_model.safetensors") for x in (first, second)]
    np.testing.assert_array_equal(
        weights[1]["conv_in.weight"], weights[0]["conv_in.weight"] + np.float32(1)
    )
    assert source_hash(second) == hashlib.sha256(file.read_bytes()).hexdigest()
    (beside / "kept").replace(file)
    assert find_model(str(file), cache=cache) == first
    os.utime(file)  # Touched, not changed.
    assert find_model(str(file), cache=cache) == first

    # Replaced while it is converted: what was read of either is not kept.
    write = single_file.write_configs

    def replaced(*arguments: Any) -> None:
        write(*arguments)
        save_file(tensors | {CONV_IN: tensors[CONV_IN] + 2}, file)

    monkeypatch.setattr(single_file, "write_configs", replaced)
    save_file(tensors | {CONV_IN: tensors[CONV_IN] + 3}, file)
    there = sorted(path.name for path in cache.glob("[!.]*"))
    with pytest.raises(UserError, match="was changed while it was converted"):
        find_model(str(file), cache=cache)
    assert sorted(path.name for path in cache.glob("[!.]*")) == there


def test_diffusers_draws_the_same_from_the_converted_folder(
    tiny_pipeline_folder: Path, beside: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    save_file(ldm_tensors(tiny_pipeline_folder, 2), beside / "model.safetensors")
    folder = find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache")
    converted = StableDiffusionPipeline.from_pretrained(folder)
    original = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    for part in ("text_encoder", "unet", "vae"):
        theirs = getattr(original, part).state_dict()
        for name, tensor in getattr(converted, part).state_dict().items():
            assert tensor.equal(theirs[name]), name
    # OpenCLIP pads with token 0.
    assert converted.tokenizer.pad_token_id == converted.tokenizer.convert_tokens_to_ids("!")
    assert original.tokenizer.pad_token_id == original.tokenizer.eos_token_id


def changed(**tensors: Any) -> Callable[[dict[str, np.ndarray], Path], None]:
    """Writes the model with some tensors replaced (None: left out)."""

    def write(model: dict[str, np.ndarray], file: Path) -> None:
        every = model | tensors
        save_file({key: array for key, array in every.items() if array is not None}, file)

    return write


def foreign(key: str) -> Callable[[dict[str, np.ndarray], Path], None]:
    return lambda model, file: save_file({key: np.ones(2, np.float32)}, file)


def cut(model: dict[str, np.ndarray], file: Path) -> None:
    save_file(model, file)
    file.write_bytes(file.read_bytes()[:-100])


ONE = np.ones((1, 1), np.float32)
SECOND = "model.diffusion_model.time_embed.2.bias"
NAN = np.full(64, np.nan, np.float32)
MALFORMED: dict[str, tuple[Callable[[dict[str, np.ndarray], Path], Any], str]] = {
    "truncated": (cut, "cut off after .* within [a-z_]+[.]"),
    "empty": (lambda model, file: file.write_bytes(b""), "not a safetensors file"),
    "html": (lambda model, file: file.write_text("<html>" * 9), "not a safetensors file"),
    "header": (lambda m, f: f.write_bytes(b"\x02" + b"\0" * 7 + b"[]"), "header is damaged"),
    "shape": (changed(**{SECOND: ONE}), rf"{SECOND} has shape \(1, 1\), expected \(64,\)"),
    "type": (changed(**{SECOND: np.ones(64, int)}), f"{SECOND} has type I64"),
    "NaN": (changed(**{SECOND: NAN}), f"{SECOND} holds NaN"),
    "missing": (changed(**{SECOND: None}), f"{SECOND} is missing"),
    "unknown": (
        changed(**{f"{SECOND}x": ONE, "first_stage_model.x": ONE}),
        f"first_stage_model.x is unknown; {SECOND}x is unknown",
    ),
    "SD3": (
        foreign("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
        "joint_blocks.0.x_block.attn.qkv.weight belongs to Stable Diffusion 3",
    ),
    "FLUX": (
        foreign("double_blocks.0.img_attn.norm.key_norm.scale"),
        "double_blocks.0.img_attn.norm.key_norm.scale belongs to FLUX",
    ),
    "LoRA": (foreign("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"), "belongs to a LoRA"),
    "a part": (foreign("down_blocks.0.resnets.0.conv1.bias"), f"has no {CONV_IN}"),
    "inpainting": (
        changed(**{CONV_IN: np.ones((16, 9, 3, 3), np.float32)}),
        f"{CONV_IN} has 9 input channels",
    ),
    "no text encoder": (changed(**{TOKENS: None}), f"has no {TOKENS}"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_one_line_with_file_and_key(
    name: str, tiny_pipeline_folder: Path, beside: Path, tmp_path: Path
) -> None:
    write, message = MALFORMED[name]
    write(ldm_tensors(tiny_pipeline_folder, 1), beside / "model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        find_model(str(beside / "model.safetensors"), cache=tmp_path / "cache")
    assert str(beside / "model.safetensors") in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("cache/[!.]*"))


def test_version_two_must_say_what_it_predicts(
    tiny_pipeline_folder: Path, beside: Path, tmp_path: Path
) -> None:
    file = beside / "model.safetensors"
    save_file(ldm_tensors(tiny_pipeline_folder, 2), file)
    shutil.rmtree(beside / "scheduler")
    with pytest.raises(UserError, match=r"config.model.prediction to epsilon .* or v_prediction"):
        find_model(str(file), cache=tmp_path / "cache")
    folder = find_model(str(file), prediction="v_prediction", cache=tmp_path / "cache")
    assert load_pipeline(folder).schedule.prediction_type == "v_prediction"


@pytest.mark.parametrize(("version", "pad"), [(1, "<|endoftext|>"), (2, "!")])
def test_without_a_tokenizer_beside_it_a_file_gets_clips_own(
    version: ldm_keys.Version,
    pad: str,
    tiny_pipeline_folder: Path,
    beside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No network is asked: the Hub's client would raise."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    file = beside / "model.safetensors"
    save_file(ldm_tensors(tiny_pipeline_folder, version), file)
    shutil.move(beside / "tokenizer", tmp_path / "tokenizer")
    folder = find_model(str(file), prediction="epsilon", cache=tmp_path / "cache")
    tokenizer = load_tokenizer(folder / "tokenizer")
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    filled = tokenizer.get_vocab()[pad]  # type: ignore[attr-defined]
    assert tokenize(tokenizer, ["a photo of a cat"])[0].tolist() == cat + [filled] * 70
    with pytest.raises(UserError, match=r"model_max_length is 77, .* is 32; make them equal"):
        load_pipeline(folder)  # The tiny model takes 32 tokens.
