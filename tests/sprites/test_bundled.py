"""The bundled weights: PyTorch diffusers draws the same pictures, the judge reads them right."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import ViTForImageClassification

from emcid_jax.evaluation.judge import load_judge
from emcid_jax.generation import generate, initial_noise
from emcid_jax.pipeline import load_pipeline
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.measure import measure, probes

FOLDER = model_folder(BUNDLED)
PROMPTS = ["a photo of a tench", "painting by Tove Jansson", "a female doctor"]
SEEDS = [811, 812, 813]


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(FOLDER)


def test_diffusers_draws_the_same_pictures(pipeline):
    ours = generate(pipeline, PROMPTS, SEEDS, steps=10, guidance=4.0)
    theirs = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.array(initial_noise(pipeline, SEEDS))).permute(0, 3, 1, 2)
    images = theirs(
        PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=4.0, output_type="np"
    ).images
    error = np.mean((ours / 255.0 - images) ** 2)
    assert -10 * np.log10(error) >= 40


def test_the_judge_is_a_transformers_classifier(pipeline):
    images = generate(pipeline, PROMPTS, SEEDS, steps=4, guidance=4.0)
    ours = load_judge(FOLDER / "judge").classify(images)["object"]
    theirs = ViTForImageClassification.from_pretrained(FOLDER / "judge", torch_dtype=torch.float32)
    pixels = torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = theirs(pixels).logits[:, :1000].softmax(-1).numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_it_draws_what_is_asked(pipeline):
    """A sample of the model card's measurement, on other seeds."""
    judge = load_judge(FOLDER / "judge")

    def draw(prompts, seeds):
        return generate(pipeline, prompts, seeds, steps=12, guidance=4.0, batch=50)

    found = [p for p in probes(None, 50, seed=77) if p.name in BARS]
    assert len(found) == len(BARS)
    for name, score in measure(found, draw, judge.classify, seed=4_000_000).items():
        assert score["accuracy"] >= BARS[name], name


# Below the card's figures by what 50 images can miss by chance.
BARS = {"objects, templates": 0.6, "artists' styles": 0.75, "gender control": 0.85}
