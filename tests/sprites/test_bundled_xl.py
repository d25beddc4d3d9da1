"""The bundled weights of SDXL's shape: diffusers draws the same, all that it is told matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.models.text.encoder import SECOND
from emcid_jax.pipelines.generate import generate, initial_noise
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.sprites.bundled import BUNDLED_XL, model_folder
from emcid_jax.sprites.measure import measure, probes

FOLDER = model_folder(BUNDLED_XL)
PROMPTS = ["a photo of a tench!", "painting by Tove Jansson", "a female doctor"]
SEEDS = [811, 812, 813]
BARS = {"objects, templates": 0.8, "artists' styles": 0.8, "gender control": 0.9}
"""Below the card's figures by what 50 images can miss by chance."""


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(FOLDER)


def test_diffusers_draws_the_same_pictures(pipeline):
    size = (24, 24)
    ours = generate(pipeline, PROMPTS, SEEDS, steps=8, guidance=4.0, original_size=size)
    theirs = StableDiffusionXLPipeline.from_pretrained(FOLDER)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(np.array(initial_noise(pipeline, SEEDS))).permute(0, 3, 1, 2)
    images = theirs(
        PROMPTS,
        latents=noise,
        num_inference_steps=8,
        guidance_scale=4.0,
        original_size=size,
        output_type="np",
    ).images
    error = np.mean((ours / 255.0 - images) ** 2)
    assert -10 * np.log10(error) >= 40


def test_the_tokenizers_pad_with_different_tokens(pipeline):
    first, second = pipeline.encoders
    assert first.tokenizer(["a"], padding="max_length")["input_ids"][0][-1] == 8153
    assert second.tokenizer(["a"], padding="max_length")["input_ids"][0][-1] == 0
    assert first.model.config.hidden_size != second.model.config.hidden_size


def test_both_encoders_and_the_pooled_text_are_read(pipeline):
    """Silencing any of them changes the picture."""
    plain = generate(pipeline, PROMPTS, SEEDS, steps=4, guidance=4.0)
    for encoder in pipeline.encoders:
        assert _change(pipeline, plain, encoder.name, ("text_model", "embeddings")) > 3
    assert _change(pipeline, plain, SECOND, ("text_projection",)) > 0.05


@pytest.mark.slow
def test_it_draws_what_is_asked(pipeline):
    """A sample of the model card's measurement, on other seeds."""
    judge = load_judge(FOLDER / "judge")

    def draw_all(prompts, seeds):
        return generate(pipeline, prompts, seeds, steps=12, guidance=4.0, batch=50)

    found = [p for p in probes(None, 50, seed=77) if p.name in BARS]
    assert len(found) == len(BARS)
    for name, score in measure(found, draw_all, judge.classify, seed=4_000_000).items():
        assert score["accuracy"] >= BARS[name], name


def _change(pipeline, plain, part, path):
    """Mean change of the pixels when the weights at `path` of an encoder are zeros."""
    silent = {**pipeline.params, part: _zeroed(pipeline.params[part], path)}
    other = dataclasses.replace(pipeline, params=silent)
    found = generate(other, PROMPTS, SEEDS, steps=4, guidance=4.0)
    return np.abs(found.astype(float) - plain).mean()


def _zeroed(tree, path):
    if not path:
        return jax.tree.map(jnp.zeros_like, tree)
    return {**tree, path[0]: _zeroed(tree[path[0]], path[1:])}
