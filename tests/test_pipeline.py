"""The pipeline against PyTorch diffusers on a tiny random Stable Diffusion."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.flatten_util import ravel_pytree

from emcid_jax import parallel
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.diffusion.sampling import guided, sample
from emcid_jax.errors import UserError
from emcid_jax.models.weights import params_hash
from emcid_jax.pipeline import (
    Pipeline,
    draw,
    encode_prompts,
    generate,
    image_batches,
    initial_noise,
    load_pipeline,
    save_pipeline,
    tokenize,
    with_text_params,
)

PROMPTS = ["a photo of a dog on the beach", "a painting by Vincent van Gogh", ""]
SEEDS = [11, 12, 13]
SETTINGS: dict[str, Any] = {"steps": 10, "guidance": 4.0}  # shared: fewer compiled programs
PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def pndm_folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pndm") / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(PNDM))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def load_diffusers(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    oracle = StableDiffusionPipeline.from_pretrained(folder)
    oracle.set_progress_bar_config(disable=True)
    return oracle


def drawn_by_diffusers(folder: Path, noise: np.ndarray, output_type: str) -> np.ndarray:
    oracle = load_diffusers(folder)
    images = oracle(
        PROMPTS,
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
        num_inference_steps=10,
        guidance_scale=4.0,
        output_type=output_type,
    ).images
    if output_type == "latent":
        return images.numpy().transpose(0, 2, 3, 1)
    return np.stack([np.asarray(image) for image in images])


def sampled_latents(pipeline: Pipeline, noise: np.ndarray) -> np.ndarray:
    states = encode_prompts(pipeline, ["", *PROMPTS])
    pairs = jnp.asarray(states[[0, 1, 0, 2, 0, 3]])

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.full(len(latents), timestep)
        return pipeline.unet.apply({"params": pipeline.params["unet"]}, latents, timesteps, pairs)

    sampler = make_sampler(pipeline.scheduler_config, 10)
    return np.asarray(jax.jit(functools.partial(sample, guided(predict, 4.0), sampler))(noise))


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_draws_what_diffusers_draws(
    scheduler: str, tiny_pipeline_folder: Path, pndm_folder: Path
) -> None:
    folder = tiny_pipeline_folder if scheduler == "ddim" else pndm_folder
    pipeline = load_pipeline(folder)
    noise = initial_noise(pipeline, SEEDS)
    np.testing.assert_array_equal(
        noise[1], np.random.default_rng(12).standard_normal((8, 8, 4)).astype(np.float32)
    )

    theirs = drawn_by_diffusers(folder, noise, "latent")
    ours = sampled_latents(pipeline, noise)
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() <= 1e-3

    theirs = drawn_by_diffusers(folder, noise, "pil")
    ours = generate(pipeline, PROMPTS, SEEDS, **SETTINGS)
    assert ours.dtype == np.uint8
    assert theirs.std() > 20  # there is something to see
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40


def test_text_states_are_those_of_transformers(
    pipeline: Pipeline, tiny_pipeline_folder: Path
) -> None:
    oracle = load_diffusers(tiny_pipeline_folder)
    prompts = [*PROMPTS, "a red sports car " * 20]
    ids = oracle.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(tokenize(pipeline.tokenizer, prompts), ids.input_ids.numpy())
    with torch.no_grad():
        theirs = oracle.text_encoder(ids.input_ids).last_hidden_state.numpy()
    np.testing.assert_allclose(encode_prompts(pipeline, prompts), theirs, rtol=1e-4, atol=1e-4)


def test_an_image_depends_on_its_own_prompt_and_seed_only(pipeline: Pipeline) -> None:
    together = generate(pipeline, PROMPTS, SEEDS, **SETTINGS).astype(int)
    padded = list(image_batches(pipeline, PROMPTS, SEEDS, batch=2, **SETTINGS))
    assert [len(images) for images in padded] == [2, 1]
    assert np.abs(together - np.concatenate(padded)).max() <= 1
    prompts, seeds = [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [5, SEEDS[1], SEEDS[1]]
    same, *others = generate(pipeline, prompts, seeds, **SETTINGS)[[1, 0, 2]].astype(int)
    assert np.abs(together[1] - same).max() <= 1
    assert all(np.abs(together[:2] - other).max(axis=(1, 2, 3)).min() > 10 for other in others)


def test_no_guidance_is_guidance_of_one(pipeline: Pipeline) -> None:
    settings = SETTINGS | {"guidance": 1.0}
    plain = generate(pipeline, PROMPTS, SEEDS, **settings)
    settings = SETTINGS | {"guidance": 1.0 + 1e-6}
    nearly = generate(pipeline, PROMPTS, SEEDS, **settings, negative="a cat")
    assert np.abs(plain.astype(int) - nearly.astype(int)).max() <= 1


def test_nothing_to_draw_is_no_images(pipeline: Pipeline) -> None:
    assert generate(pipeline, [], [], **SETTINGS).shape == (0, 16, 16, 3)
    assert encode_prompts(pipeline, []).shape == (0, 32, 32)


def test_the_program_is_compiled_once_per_shape(pipeline: Pipeline) -> None:
    def run(pipeline: Pipeline, guidance: float, prompts: list[str]) -> int:
        generate(pipeline, prompts, SEEDS, **(SETTINGS | {"guidance": guidance}))
        return draw._cache_size()

    first = run(pipeline, 4.0, PROMPTS)
    assert first > 0
    assert run(pipeline, 7.5, ["a cat", "a nurse", "a nurse"]) == first
    edited = with_text_params(pipeline, jax.tree.map(lambda x: 2 * x, text_params(pipeline)))
    assert run(edited, 4.0, PROMPTS) == first


def test_a_mesh_splits_the_batch_and_changes_nothing(pipeline: Pipeline) -> None:
    mesh = parallel.make_mesh(jax.devices()[:2])
    one = generate(pipeline, PROMPTS, SEEDS, **SETTINGS)
    two = generate(pipeline, PROMPTS, SEEDS, mesh=mesh, **SETTINGS)  # padded to 4
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1

    split = parallel.sharded(mesh)
    models = {part: pipeline.params[part] for part in ("unet", "vae")}
    compiled = draw.lower(
        jax.device_put(models, parallel.replicated(mesh)),
        jax.device_put(np.zeros((4, 2, 32, 32), np.float32), split),
        jax.device_put(np.zeros((4, 8, 8, 4), np.float32), split),
        jnp.float32(4.0),
        unet=pipeline.unet,
        vae=pipeline.vae,
        sampler=make_sampler(pipeline.scheduler_config, 1),
        mesh=mesh,
    ).compile()
    assert compiled.output_shardings.is_equivalent_to(split, 4)
    program = compiled.as_text()
    assert "all-gather" not in program
    assert "all-reduce" not in program
    assert "collective-permute" not in program


def text_params(pipeline: Pipeline) -> Any:
    return pipeline.params["text_encoder"]


def test_another_text_encoder_leaves_the_base_alone(pipeline: Pipeline) -> None:
    before = params_hash(text_params(pipeline))
    edited = with_text_params(pipeline, jax.tree.map(lambda x: 1.5 * x, text_params(pipeline)))
    assert params_hash(text_params(pipeline)) == before
    assert edited.params["unet"] is pipeline.params["unet"]
    changed = encode_prompts(pipeline, PROMPTS, edited.params)
    np.testing.assert_array_equal(changed, encode_prompts(edited, PROMPTS))
    assert np.abs(changed - encode_prompts(pipeline, PROMPTS)).max() > 0.1


def test_saved_folders_are_read_by_us_and_by_diffusers(pipeline: Pipeline, tmp_path: Path) -> None:
    save_pipeline(pipeline, tmp_path / "full")
    again = load_pipeline(tmp_path / "full")
    for part in ("text_encoder", "unet", "vae"):
        assert params_hash(again.params[part]) == params_hash(pipeline.params[part])
    files = {path.name for path in (tmp_path / "full" / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt"} <= files

    save_pipeline(pipeline, tmp_path / "half", jnp.float16)
    half = load_pipeline(tmp_path / "half")
    stored, _ = ravel_pytree(half.params)
    full, _ = ravel_pytree(pipeline.params)
    assert stored.dtype == jnp.float32
    np.testing.assert_allclose(stored, full, rtol=2**-11, atol=1e-7)

    theirs = drawn_by_diffusers(tmp_path / "full", initial_noise(pipeline, SEEDS), "pil")
    ours = generate(again, PROMPTS, SEEDS, **SETTINGS)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def set_json(path: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(content | fields))

    return change


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: no such file"),
    "other pipeline": (
        set_json("model_index.json", _class_name="FluxPipeline"),
        "_class_name='FluxPipeline' is not supported; use",
    ),
    "other encoder": (
        set_json("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "text_encoder=.*T5EncoderModel.* is not supported; use CLIPTextModel",
    ),
    "no config": (lambda f: (f / "unet/config.json").unlink(), "unet/config.json: no such file"),
    "damaged config": (
        lambda f: (f / "vae/config.json").write_text("{"),
        "vae/config.json: not readable as JSON",
    ),
    "list config": (lambda f: (f / "vae/config.json").write_text("[]"), "holds list"),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "unet.*safetensors",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer: no tokenizer here"),
    "damaged tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "tokenizer: not a CLIP tokenizer",
    ),
    "endless tokenizer": (
        set_json("tokenizer/tokenizer_config.json", model_max_length=10**30),
        "set model_max_length",
    ),
    "long tokenizer": (
        set_json("tokenizer/tokenizer_config.json", model_max_length=77),
        "model_max_length=77, text_encoder max_position_embeddings=32",
    ),
    "inpainting": (set_json("unet/config.json", in_channels=9), "in_channels=9, vae"),
    "another unet": (
        set_json("unet/config.json", cross_attention_dim=64),
        "cross_attention_dim=64, text_encoder hidden_size=32",
    ),
    "another scheduler": (
        set_json("scheduler/scheduler_config.json", _class_name="UniPCMultistepScheduler"),
        "_class_name='UniPCMultistepScheduler' is not supported",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_one_clear_error(
    name: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    damage, message = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(folder)
    assert str(tmp_path) in str(error.value) or "scheduler_config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts_and_seeds_must_match(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="3 prompts but 1 seeds"):
        generate(pipeline, PROMPTS, [1], steps=2, guidance=4.0)
