"""Models without weights: the same shapes as with them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError


def json_only(source: Path, folder: Path) -> Path:
    for part, file in SD.config_files.items():
        (folder / part).mkdir(parents=True)
        shutil.copy(source / part / file, folder / part / file)
    return folder


def test_json_files_are_enough(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    loaded = load_pipeline(tiny_pipeline_folder, jnp.bfloat16)
    got = abstract_pipeline(json_only(tiny_pipeline_folder, tmp_path / "model"), jnp.bfloat16)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), got.params, loaded.params
    )
    assert all(jax.tree.leaves(same))
    assert got.unet == loaded.unet
    assert got.encoder.tokenizer.model_max_length == loaded.encoder.tokenizer.model_max_length
    assert got.image_size == loaded.image_size


@pytest.mark.parametrize(
    ("name", "counts", "pixels"),
    [
        ("sd-1.4", {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}, 512),
        ("sd-2.1", {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863}, 768),
        (
            "sdxl-base",
            {
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
                "unet": 2_567_463_684,
                "vae": 83_653_863,
            },
            1024,
        ),
    ],
)
def test_published_architectures_have_their_number_of_parameters(
    name: str, counts: dict[str, int], pixels: int
) -> None:
    """The numbers that diffusers and transformers report for the published checkpoints."""
    pipeline = abstract_pipeline(name)
    got = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for part, tree in pipeline.params.items()
    }
    assert got == counts
    assert pipeline.image_size == (pixels, pixels)


def test_a_missing_or_damaged_file_is_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = json_only(tiny_pipeline_folder, tmp_path / "model")
    config = folder / "unet" / "config.json"
    for content, words in (("{", ":1: json: Expecting"), ("[]", ": is no JSON object")):
        config.write_text(content)
        with pytest.raises(UserError, match=f"unet/config.json.*{words}"):
            abstract_pipeline(folder)
    config.unlink()
    with pytest.raises(
        UserError, match=r"config\.model\.path is '.*unet/config\.json': no such file"
    ):
        abstract_pipeline(folder)
    with pytest.raises(UserError, match=r"config\.model\.path is '.*nowhere', no folder .*sd-1\.4"):
        abstract_pipeline(tmp_path / "nowhere")
