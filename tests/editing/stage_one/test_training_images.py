"""Training images: which prompts draw them, what they depend on, files and their errors."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import training_images
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError

CONFIG = StageOneConfig(image_steps=2, image_guidance=2.0, samples_per_prompt=2)
FILES = dataclasses.replace(CONFIG, image_source="files", samples_per_prompt=1)


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture
def gradient(tmp_path):
    """A wide image, 60 x 20: red grows to the right, green downwards."""
    red, green = np.meshgrid(np.arange(60) * 4, np.arange(20) * 12)
    pixels = np.stack([red, green, np.full_like(red, 255)], axis=-1).astype(np.uint8)
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def test_images_depend_on_their_own_request_only(pipeline):
    prompts = [["a photo of a dog", "a dog"], ["a photo of a cat", "a cat"]]
    both = training_images.draw(pipeline, prompts, [1, 2], CONFIG)
    second = training_images.draw(pipeline, prompts[1:], [2], CONFIG)
    assert both.shape == (2, 2, 2, 16, 16, 3)
    assert both.min() >= -1
    assert both.max() <= 1
    # One step of 8 bits: another batch size may round differently.
    assert np.abs(both[1] - second[0]).max() <= 1.01 / 127.5
    assert np.abs(both[0, 0] - both[0, 1]).max() > 0.1


def test_every_image_has_its_own_seed():
    seeds = {
        training_images.image_seed(seed, sample, prompt)
        for seed in (0, 1, 2**32 - 1)
        for sample in range(3)
        for prompt in range(3)
    }
    assert len(seeds) == 27


@pytest.mark.parametrize(
    ("name", "source", "wanted"),
    [
        ("ablate-dest", "destination", "destination"),
        ("ablate-dest", "source", "source"),
        ("sampled-noise", "destination", "destination"),
        ("ablate-source", "destination", "source"),
        ("esd", "destination", "source"),
    ],
)
def test_prompts_follow_the_objective(name, source, wanted):
    config = StageOneConfig(objective=name, image_source=source)
    got = training_images.image_prompts([["source"]], [["destination"]], config)
    assert got == [[wanted]]


def test_files_are_cropped_resized_and_scaled(gradient):
    path, pixels = gradient
    got = training_images.read([[str(path)]], 3, (10, 10), FILES)
    # Halving with antialiased bilinear weights, as torch does it, of the middle 20 x 20.
    middle = torch.as_tensor(pixels[:, 20:40]).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(
        middle, (10, 10), mode="bilinear", antialias=True, align_corners=False
    )
    wanted = wanted[0].permute(1, 2, 0).numpy() / 127.5 - 1
    assert got.shape == (1, 1, 3, 10, 10, 3)
    for prompt in range(3):  # a request with one prompt is padded with its own image
        np.testing.assert_allclose(got[0, 0, prompt], wanted, atol=1.01 / 127.5)


def test_files_come_sample_by_sample(tmp_path):
    paths = []
    for value in (0, 60, 120, 180):
        paths.append(str(tmp_path / f"{value}.png"))
        Image.new("L", (4, 4), value).save(paths[-1])
    config = dataclasses.replace(FILES, samples_per_prompt=2)
    got = training_images.read([paths], 2, (4, 4), config)[0, ..., 0, 0, 0]
    np.testing.assert_allclose((got + 1) * 127.5, [[0, 60], [120, 180]], atol=1e-3)


def test_all_file_errors_are_listed_at_once(tmp_path, gradient):
    path, _ = gradient
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    missing, pipe = tmp_path / "missing.png", tmp_path / "pipe.png"
    os.mkfifo(pipe)  # Opened without looking, it would be waited for.
    paths = [[str(path)], [str(pipe), str(text)], [str(missing), str(tmp_path)]]
    with pytest.raises(UserError) as error:
        training_images.check_files(paths, [2, 2, 2], ["r:1", "r:2", "r:3"], FILES)
    lines = str(error.value).split("\n")
    assert len(lines) == 5
    assert "r:1: image_paths has 1 files" in lines[0]
    assert "needs 2" in lines[0]
    assert lines[1].startswith("r:2: image_paths:")
    assert "pipe.png: is a pipe" in lines[1]
    assert "notes.png: is not an image" in lines[2]
    assert "missing.png: does not exist" in lines[3]
    assert "cannot be read (Is a directory)" in lines[4]


def test_damage_behind_the_header_is_found_by_the_check(tmp_path, gradient):
    path, _ = gradient
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"^r:1: image_paths: .*wide\.png: cannot be read \("
    ) as error:
        training_images.check_files([[str(path)]], [1], ["r:1"], FILES)
    assert "\n" not in str(error.value)


def test_files_are_checked_only_when_read():
    training_images.check_files([[]], [3], ["r:1"], CONFIG)
    text_only = dataclasses.replace(FILES, objective="text-only")
    training_images.check_files([[]], [3], ["r:1"], text_only)
