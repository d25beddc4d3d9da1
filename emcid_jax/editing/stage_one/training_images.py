"""Training images of Stage I: drawn by the model itself, or read from files (docs/stage_one.md).

Every image depends on its request's seed, its sample and its prompt only, so that adding, removing
or reordering requests changes nobody else's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import loss
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.pictures import read_picture

SOURCE_OBJECTIVES = ("ablate-source", "esd")
"""Objectives that are defined on images of the source."""


def image_prompts(
    source: Sequence[Sequence[str]], destination: Sequence[Sequence[str]], config: StageOneConfig
) -> Sequence[Sequence[str]]:
    """The prompts [concept][prompt] that draw the training images under these settings."""
    from_source = config.objective in SOURCE_OBJECTIVES or config.image_source == "source"
    return source if from_source else destination


def draw(
    pipeline: Pipeline,
    prompts: Sequence[Sequence[str]],
    seeds: Sequence[int],
    config: StageOneConfig,
    **generate_options: Any,
) -> Float[np.ndarray, "concept sample prompt height width 3"]:
    """`samples_per_prompt` images in [-1, 1] of every prompt, drawn by the clean model.

    Args:
        pipeline: the clean model.
        prompts: [concept][prompt], all concepts with equally many (padded to a rectangle).
        seeds: one per concept.
        config: settings; `image_steps` and `image_guidance` are the sampler's.
        generate_options: passed on to `generate`.
    """
    count = len(prompts[0])
    flat_prompts, flat_seeds = [], []
    for row, seed in zip(prompts, seeds, strict=True):
        for sample in range(config.samples_per_prompt):
            flat_prompts += row
            flat_seeds += [image_seed(seed, sample, prompt) for prompt in range(count)]
    images = generate(
        pipeline,
        flat_prompts,
        flat_seeds,
        steps=config.image_steps,
        guidance=config.image_guidance,
        **generate_options,
    )
    return _scaled(images).reshape(
        len(prompts), config.samples_per_prompt, count, *images.shape[1:]
    )


def image_seed(seed: int, sample: int, prompt: int) -> int:
    """Seed of one training image, from the request's seed and its place within the request."""
    return int(np.random.SeedSequence([seed, sample, prompt]).generate_state(1)[0])


def check_files(
    paths: Sequence[Sequence[str]],
    prompt_counts: Sequence[int],
    origins: Sequence[str],
    config: StageOneConfig,
) -> None:
    """Checks the requests' image files before any work starts; one error lists all that is wrong.

    Args:
        paths: each request's `image_paths`, all samples of the first image, one per prompt, first.
        prompt_counts: each request's number of prompts.
        origins: each request's `file:line`, for the messages.
        config: settings; does nothing unless images are read from files.

    Raises:
        UserError: a request has the wrong number of files, or a file is none that `read_picture`
            decodes.
    """
    if not reads_files(config):
        return
    problems = []
    for row, count, origin in zip(paths, prompt_counts, origins, strict=True):
        expected = config.samples_per_prompt * count
        if len(row) != expected:
            problems.append(
                f"{origin}: image_paths has {len(row)} files; stage_one.image_source='files' needs "
                f"{expected} (samples_per_prompt {config.samples_per_prompt} x {count} prompts)"
            )
        for path in row:
            try:
                read_picture(Path(path))
            except UserError as error:
                problems.append(f"{origin}: image_paths: {error}")
    if problems:
        raise UserError("\n".join(problems))


def reads_files(config: StageOneConfig) -> bool:
    """Whether these settings take the training images from files."""
    return loss.needs_images(config) and config.image_source == "files"


def read(
    paths: Sequence[Sequence[str]],
    prompt_count: int,
    size: tuple[int, int],
    config: StageOneConfig,
) -> Float[np.ndarray, "concept sample prompt height width 3"]:
    """Training images from files, `check_files` passed: centre crop, bilinear resize, [-1, 1].

    Requests with fewer prompts than `prompt_count` are padded with their own first image.

    Args:
        paths: each request's files, sample by sample, one per prompt.
        prompt_count: prompts of the padded rectangle.
        size: the model's image height and width in pixels.
        config: settings.
    """
    samples = config.samples_per_prompt
    concepts = []
    for row in paths:
        images = _scaled(np.stack([load_image(Path(path), size) for path in row]))
        images = images.reshape(samples, -1, *images.shape[1:])
        index = np.arange(prompt_count)
        concepts.append(images[:, np.where(index < images.shape[1], index, 0)])
    return np.stack(concepts)


def load_image(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """An image file cropped at its centre to the wanted shape, then resized (bilinear)."""
    from PIL import Image

    height, width = size
    image = Image.fromarray(read_picture(path))
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = width * scale, height * scale
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def _scaled(images: np.ndarray) -> np.ndarray:
    """Bytes to [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0
