"""Models found in folders and in a stand-in of the Hub's cache; everything else is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.sources import find_model
from emcid_jax.runtime.errors import UserError

COMMIT, OLDER = "a" * 40, "b" * 40
NAME = "someone/tiny-diffusion"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a Hub that is not reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def store(model: Path, hub: Path, commit: str, *refs: str) -> Path:
    """Puts a folder into the cache as the Hub's client does: links to blobs, and named commits."""
    root = hub / "models--someone--tiny-diffusion"
    snapshot = root / "snapshots" / commit
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    for i, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = root / "blobs" / f"{commit[:4]}{i}"
        shutil.copyfile(file, blob)
        place = snapshot / file.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)
    for ref in refs:
        (root / "refs" / ref).write_text(commit)
    return snapshot


def test_a_folder_is_itself(tiny_pipeline_folder: Path) -> None:
    assert find_model(str(tiny_pipeline_folder)) == tiny_pipeline_folder


def test_a_hub_id_is_its_snapshot_in_the_cache(tiny_pipeline_folder: Path, hub: Path) -> None:
    newest = store(tiny_pipeline_folder, hub, COMMIT, "main")
    older = store(tiny_pipeline_folder, hub, OLDER, "v1.0")
    assert find_model(NAME) == newest
    assert find_model(NAME, revision="v1.0") == older
    assert find_model(NAME, revision=OLDER) == older
    with pytest.raises(UserError, match=f"{NAME} at revision v2: no such folder here, not wholly"):
        find_model(NAME, revision="v2")
    with pytest.raises(UserError, match="someone/else: no such folder here, not wholly in the Hub"):
        find_model("someone/else")


def test_a_variant_must_be_there_for_every_part(tiny_pipeline_folder: Path, hub: Path) -> None:
    snapshot = store(tiny_pipeline_folder, hub, COMMIT, "main")
    for part in ("text_encoder", "unet"):
        weights = next((snapshot / part).glob("*.safetensors"))
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    with pytest.raises(UserError, match=r"tiny-diffusion: vae has no \*fp16\*\.safetensors"):
        find_model(NAME, variant="fp16")
    weights = next((snapshot / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert find_model(NAME, variant="fp16") == snapshot


def test_no_diffusers_folder_on_the_hub(tiny_pipeline_folder: Path, hub: Path) -> None:
    snapshot = store(tiny_pipeline_folder, hub, COMMIT, "main")
    (snapshot / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        find_model(NAME)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"config\.model\.path is ''; give"),
        ("nowhere", "config.model.path is 'nowhere'; give `sprites`, a diffusers folder"),
        ("no/such/place", "config.model.path is 'no/such/place'"),
        ("model.safetensors", "model.safetensors: no such file"),
        ("sd.ckpt", r"sd.ckpt: pickled .*P.from_single_file\(\"sd.ckpt\"\).save_pretrained"),
    ],
)
def test_no_model_is_one_line(path: str, message: str, hub: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_model(path)
    assert "\n" not in str(error.value)


def test_a_pickled_part_comes_with_its_conversion(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model.bin: .*P.from_pretrained"):
        find_model(str(folder))


def test_a_folder_says_itself_what_it_predicts(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(UserError, match=r"config\.model\.prediction is 'epsilon', but"):
        find_model(str(tiny_pipeline_folder), prediction="epsilon")


def test_the_variant_is_what_is_loaded(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    for part in ("text_encoder", "unet", "vae"):
        plain = next((folder / part).glob("*.safetensors"))
        half = {name: array.astype(np.float16) for name, array in load_file(plain).items()}
        save_file(half, plain.with_suffix(".fp16.safetensors"))
    full, found = load_pipeline(folder).params, load_pipeline(folder, variant="fp16").params
    for plain, half in zip(jax.tree.leaves(full), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(half, np.asarray(plain).astype(np.float16))
        assert half.dtype == np.float32
