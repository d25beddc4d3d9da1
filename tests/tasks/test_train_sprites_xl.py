"""The recipe of the model of SDXL's shape, run in small: diffusers reads what it writes."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from emcid_jax.pipelines.generate import generate, initial_noise
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.tasks.train_sprites_xl import TrainXlConfig, run


@pytest.mark.slow
def test_the_recipe_in_small(tmp_path):
    run(TrainXlConfig(images=120, scale=0.001), tmp_path)
    ours = load_pipeline(tmp_path / "model")
    prompts, seeds = ["a photo of a tench!", "painting by Tove Jansson"], [811, 812]
    images = generate(ours, prompts, seeds, steps=4, guidance=4.0)
    theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model")
    theirs.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.array(initial_noise(ours, seeds))).permute(0, 3, 1, 2)
    wanted = theirs(
        prompts,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=4.0,
        original_size=(64, 64),
        target_size=(64, 64),
        output_type="np",
    ).images
    assert -10 * np.log10(np.mean((images / 255.0 - wanted) ** 2)) >= 40
    # Silent before the first step.
    assert np.abs(ours.params["unet"]["add_embedding"]["linear_2"]["kernel"]).max() > 0
