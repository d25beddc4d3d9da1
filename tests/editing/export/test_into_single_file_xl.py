"""An edit of both encoders written into a single file of SDXL, in a layout written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xl_states
from emcid_jax.editing.export.edit_file import Edits, pack
from emcid_jax.editing.export.into_single_file import write_checkpoint
from emcid_jax.pipelines.single_file import file_hash
from emcid_jax.runtime.errors import UserError
from ldm_xl import OPEN_CLIP, REFINER_CLIP, ldm_xl, open_clip


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_diffusers_reads_the_edit_from_the_single_file(
    dtype: Any, xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    tensors = ldm_xl(tiny_xl_folder)
    stored = {k: a.astype(dtype) if a.dtype == np.float32 else a for k, a in tensors.items()}
    source, target = tmp_path / "base.safetensors", tmp_path / "edited.safetensors"
    save_file(stored, source, metadata={"note": "mine"})
    write_checkpoint(target, source, xl_edits, file_hash(source))

    # One tensor for each edited layer, and no other byte.
    found = load_file(target)
    changed = {key for key in stored if not np.array_equal(stored[key], found[key])}
    first = "conditioner.embedders.0.transformer.text_model.encoder.layers.{}.mlp.fc2.weight"
    second = f"{OPEN_CLIP}transformer.resblocks.{{}}.mlp.c_proj.weight"
    assert changed == {
        *(first.format(i) for i in (0, 1)),
        *(second.format(i) for i in (1, 2)),
    }
    assert sum(a != b for a, b in zip(source.read_bytes(), target.read_bytes(), strict=True)) <= (
        sum(found[key].nbytes for key in changed)
    )
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(target), config=str(tiny_xl_folder), local_files_only=True, add_watermarker=False
    )
    wanted = xl_states.edited(tiny_xl_folder, xl_edits)
    xl_states.assert_same(pipe, wanted, {np.float32: 0.0, np.float16: 0.01}[dtype])


def test_units_in_place_of_others_reach_both_encoders(
    xl_units: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    source, target = tmp_path / "base.safetensors", tmp_path / "edited.safetensors"
    save_file(ldm_xl(tiny_xl_folder), source)
    write_checkpoint(target, source, xl_units, file_hash(source))
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(target), config=str(tiny_xl_folder), local_files_only=True, add_watermarker=False
    )
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, xl_units), 1e-6)
    xl_states.assert_differs(pipe, xl_states.load(tiny_xl_folder))


def test_the_refiner_gets_the_edit_of_its_encoder(
    xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    image = {key: a for key, a in ldm_xl(tiny_xl_folder).items() if key.startswith("model.")}
    source, target = tmp_path / "refiner.safetensors", tmp_path / "edited.safetensors"
    save_file(image | open_clip(tiny_xl_folder, REFINER_CLIP), source)
    write_checkpoint(target, source, xl_edits, file_hash(source))
    found, base = load_file(target), load_file(source)
    deltas = xl_edits["text_encoder_2"].deltas()
    for key, array in found.items():
        added = [d for i, d in deltas.items() if f"resblocks.{i}.mlp.c_proj.weight" in key]
        wanted = base[key].astype(np.float64) + (added[0] if added else 0)
        np.testing.assert_array_equal(array, wanted.astype(array.dtype))


def test_an_edit_of_another_family_is_refused(
    xl_edits: Edits, tiny_xl_folder: Path, tmp_path: Path
) -> None:
    tensors = ldm_xl(tiny_xl_folder)
    source, target = tmp_path / "base.safetensors", tmp_path / "edited.safetensors"
    save_file(tensors, source)
    sha = file_hash(source)
    with pytest.raises(UserError, match=r"is Stable Diffusion XL, with .* is of text_encoder; "):
        write_checkpoint(target, source, xl_edits["text_encoder"], sha)
    misfit = {**xl_edits, "text_encoder_2": pack({0: np.ones((32, 64))})}
    with pytest.raises(UserError, match=r"has no .*resblocks.0.mlp.c_proj.weight of shape"):
        write_checkpoint(target, source, misfit, sha)
    refiner = tmp_path / "refiner.safetensors"
    image = {key: a for key, a in tensors.items() if key.startswith("model.")}
    save_file(image | open_clip(tiny_xl_folder, REFINER_CLIP), refiner)
    with pytest.raises(UserError, match="refiner, with text_encoder_2; the edit is of text_enc"):
        write_checkpoint(target, refiner, xl_edits["text_encoder"], file_hash(refiner))
    assert not target.exists()
    shutil.copyfile(source, target)
    with pytest.raises(UserError, match="there"):
        write_checkpoint(target, source, xl_edits, sha)
