"""SDXL: folders in and out, and what is drawn, against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.families import SDXL
from emcid_jax.pipelines.generate import encode_prompts, generate, initial_noise
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, save_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError

# diffusers' Euler hands torch tensors to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

PROMPTS = ["a photo of a dog on the beach", "a painting by Vincent van Gogh"]
SEEDS = [11, 12]


@pytest.fixture(scope="module")
def pipeline(tiny_xl_folder: Path) -> Pipeline:
    return load_pipeline(tiny_xl_folder)


def diffusers_pipeline(folder: Path):
    from diffusers import StableDiffusionXLPipeline

    oracle = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    oracle.set_progress_bar_config(disable=True)
    return oracle


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((ours.astype(float) - theirs) ** 2), 1e-9)))


def test_states_are_those_of_diffusers(pipeline: Pipeline, tiny_xl_folder: Path) -> None:
    oracle = diffusers_pipeline(tiny_xl_folder)
    with torch.no_grad():
        tokens, _, pooled, _ = oracle.encode_prompt(
            [*PROMPTS, ""], do_classifier_free_guidance=False
        )
    ours = encode_prompts(pipeline, [*PROMPTS, ""])
    for found, wanted in ((ours.tokens, tokens.numpy()), (ours.pooled, pooled.numpy())):
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


@pytest.mark.parametrize(
    ("negative", "size", "guidance"),
    [
        ("", None, 4.0),
        ("a cat", (8, 24), 4.0),
        pytest.param("", (32, 32), 1.0, marks=pytest.mark.slow),
    ],
)
def test_draws_what_diffusers_draws(
    pipeline: Pipeline,
    tiny_xl_folder: Path,
    negative: str,
    size: tuple[int, int] | None,
    guidance: float,
) -> None:
    """No negative prompt means zeros in place of its states, as the model was trained."""
    oracle = diffusers_pipeline(tiny_xl_folder)
    noise = initial_noise(pipeline, SEEDS)
    scaled = torch.tensor(noise.transpose(0, 3, 1, 2))
    crop = (3, 5) if size else (0, 0)
    named = {"original_size": size, "crops_coords_top_left": crop}
    sizes = named | {f"negative_{name}": value for name, value in named.items()} if size else {}
    theirs = oracle(
        PROMPTS,
        negative_prompt=[negative] * 2 if negative else None,
        latents=scaled,
        num_inference_steps=8,
        guidance_scale=guidance,
        output_type="np",
        **sizes,
    ).images
    ours = generate(
        pipeline,
        PROMPTS,
        SEEDS,
        steps=8,
        guidance=guidance,
        negative=negative,
        original_size=size,
        crop=crop,
    )
    assert psnr(ours, np.round(theirs * 255)) >= 40
    assert ours.std() > 1


@pytest.mark.slow
def test_sizes_and_both_encoders_change_the_picture(pipeline: Pipeline) -> None:
    plain = generate(pipeline, PROMPTS, SEEDS, steps=4, guidance=3.0)
    other = generate(pipeline, PROMPTS, SEEDS, steps=4, guidance=3.0, original_size=(4, 4))
    assert np.abs(plain.astype(int) - other).max() > 1
    for name in pipeline.texts:
        moved = jax.tree.map(lambda leaf: 1.5 * leaf, pipeline.params[name])
        edited = with_text_params(pipeline, {name: moved})
        changed = generate(edited, PROMPTS, SEEDS, steps=4, guidance=3.0)
        assert np.abs(plain.astype(int) - changed).max() > 1


def test_a_saved_folder_is_read_by_us_and_by_diffusers(pipeline: Pipeline, tmp_path: Path) -> None:
    save_pipeline(pipeline, tmp_path / "saved")
    again = load_pipeline(tmp_path / "saved")
    assert again.family == SDXL
    assert again.empty_is_zero
    assert all(
        params_hash(again.params[part]) == params_hash(tree)
        for part, tree in pipeline.params.items()
    )
    oracle = diffusers_pipeline(tmp_path / "saved")
    noise = torch.tensor(initial_noise(pipeline, SEEDS).transpose(0, 3, 1, 2))
    theirs = oracle(
        PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="np"
    ).images
    ours = generate(again, PROMPTS, SEEDS, steps=4, guidance=3.0)
    assert psnr(ours, np.round(theirs * 255)) >= 40


def test_the_padding_of_the_second_tokenizer_is_its_own(pipeline: Pipeline) -> None:
    first, second = pipeline.encoders
    ids = np.asarray(first.tokenizer(PROMPTS, padding="max_length")["input_ids"])
    wanted = np.asarray(second.tokenizer(PROMPTS, padding="max_length")["input_ids"])
    assert (ids != wanted).any()
    np.testing.assert_array_equal(second.repadded(ids), wanted)
    np.testing.assert_array_equal(first.repadded(ids), ids)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "unet/config.json",
            {"cross_attention_dim": 32},
            r"cross_attention_dim .* together, is 80",
        ),
        ("unet/config.json", {"addition_embed_type": None}, r"needs text_time"),
        (
            "scheduler/scheduler_config.json",
            {"steps_offset": 0},
            r"steps_offset=0 is not supported; set it to 1, as SDXL does",
        ),
        ("text_encoder_2/config.json", {"projection_dim": 41}, r"projection_dim is 41 .* make 89"),
        (
            "model_index.json",
            {"text_encoder_2": [None, None]},
            r"text_encoder_2=.* is not supported",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_named(
    tiny_xl_folder: Path, tmp_path: Path, file: str, change: dict, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_xl_folder, folder)
    content = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_pipeline(folder)


def test_tokenizers_of_different_words_are_refused(tiny_xl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_xl_folder, folder)
    for file in ("vocab.json", "tokenizer.json"):
        path = folder / "tokenizer_2" / file
        if path.is_file():
            path.write_text(path.read_text().replace('"a</w>"', '"a_</w>"'))
    with pytest.raises(UserError, match=r"tokenizer_2.*one vocabulary"):
        load_pipeline(folder)
