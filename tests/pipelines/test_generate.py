"""Drawing against PyTorch diffusers on a tiny random Stable Diffusion."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from emcid_jax.diffusion.noise import seeded_noise
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.diffusion.sampling import guided, sample
from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.pipelines import generate as generation
from emcid_jax.pipelines.generate import (
    draw,
    encode_prompts,
    generate,
    image_batches,
    initial_noise,
)
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize, with_text_params
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError

PROMPTS = ["a photo of a dog on the beach", "a painting by Vincent van Gogh", ""]
SEEDS = [11, 12, 13]
SETTINGS: dict[str, Any] = {"steps": 10, "guidance": 4.0}  # shared: fewer compiled programs
ANCESTRAL = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
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
    return with_scheduler(PNDM, tiny_pipeline_folder, tmp_path_factory.mktemp("pndm") / "model")


def with_scheduler(config: dict[str, Any], folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (target / "model_index.json").write_text(json.dumps(index))
    return target


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
    states = encode_prompts(pipeline, ["", *PROMPTS]).tokens
    pairs = jnp.asarray(states[[0, 1, 0, 2, 0, 3]])

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.full(len(latents), timestep)
        return pipeline.unet.apply({"params": pipeline.params["unet"]}, latents, timesteps, pairs)

    sampler = make_sampler(pipeline.scheduler_config, 10)
    return np.asarray(
        jax.jit(functools.partial(sample, guided(predict, 4.0), sampler))(noise).latents
    )


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
    assert_alike(ours, theirs)


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """At least 40 dB PSNR."""
    assert theirs.std() > 20  # there is something to see
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 40


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
def test_noise_added_on_the_way_is_the_seeds_own(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Euler ancestral: diffusers, handed the noise of the seeds, draws the same."""
    folder = with_scheduler(ANCESTRAL, tiny_pipeline_folder, tmp_path / "model")
    noise, *fresh = np.moveaxis(seeded_noise((8, 8, 4), SEEDS, 1 + 10), 1, 0)
    left = iter(fresh)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
        lambda *_, **__: torch.tensor(next(left).transpose(0, 3, 1, 2)),
    )
    theirs = drawn_by_diffusers(folder, noise, "pil")
    ours = list(image_batches(load_pipeline(folder), PROMPTS, SEEDS, batch=2, **SETTINGS))
    assert_alike(np.concatenate(ours), theirs)


@pytest.mark.parametrize(
    ("part", "layer", "message"),
    [
        ("text_encoder", "final_layer_norm", "the text states of prompt 0 and 2 more are not"),
        ("unet", "conv_out", "picture of seed 11: the UNet's prediction in call 1 of 10 is not"),
        ("vae", "conv_out", "picture of seed 11: what the VAE decodes is not finite"),
    ],
)
def test_a_picture_that_is_not_finite_is_an_error(
    part: str, layer: str, message: str, pipeline: Pipeline
) -> None:
    def broken(path: Any, leaf: Any) -> Any:
        return leaf * np.nan if layer in jax.tree_util.keystr(path) else leaf

    params = pipeline.params | {
        part: jax.tree_util.tree_map_with_path(broken, pipeline.params[part])
    }
    with pytest.raises(UserError, match=message):
        generate(pipeline, PROMPTS, SEEDS, params=params, **SETTINGS)


def test_the_index_decides_the_samplers_class(
    tiny_pipeline_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that another class wrote, as diffusers reads it; without `clip_sample`, too."""
    file = {key: value for key, value in PNDM.items() if key != "steps_offset"}
    folder = with_scheduler(file, tiny_pipeline_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = load_pipeline(folder)
    assert pipeline.scheduler_config["_class_name"] == "DDIMScheduler"
    assert "model_index.json says DDIMScheduler, scheduler_config.json PNDMScheduler" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what the pipeline overrules
        theirs = drawn_by_diffusers(folder, initial_noise(pipeline, SEEDS), "pil")
    assert_alike(generate(pipeline, PROMPTS, SEEDS, **SETTINGS), theirs)


def test_text_states_are_those_of_transformers(
    pipeline: Pipeline, tiny_pipeline_folder: Path
) -> None:
    oracle = load_diffusers(tiny_pipeline_folder)
    prompts = [*PROMPTS, "a red sports car " * 20]
    ids = oracle.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(
        tokenize(pipeline.encoder.tokenizer, prompts), ids.input_ids.numpy()
    )
    with torch.no_grad():
        theirs = oracle.text_encoder(ids.input_ids).last_hidden_state.numpy()
    np.testing.assert_allclose(
        encode_prompts(pipeline, prompts).tokens, theirs, rtol=1e-4, atol=1e-4
    )


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
    assert encode_prompts(pipeline, []).tokens.shape == (0, 32, 32)


def test_the_program_is_compiled_once_per_shape(pipeline: Pipeline) -> None:
    def run(pipeline: Pipeline, guidance: float, prompts: list[str]) -> int:
        generate(pipeline, prompts, SEEDS, **(SETTINGS | {"guidance": guidance}))
        return draw._cache_size()

    first = run(pipeline, 4.0, PROMPTS)
    assert first > 0
    assert run(pipeline, 7.5, ["a cat", "a nurse", "a nurse"]) == first
    twice = jax.tree.map(lambda x: 2 * x, pipeline.params["text_encoder"])
    edited = with_text_params(pipeline, {"text_encoder": twice})
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
        jax.device_put(Conditioning(np.zeros((4, 2, 32, 32), np.float32)), split),
        jax.device_put(np.zeros((4, 1, 8, 8, 4), np.float32), split),
        jnp.float32(4.0),
        unet=pipeline.unet,
        vae=pipeline.vae,
        sampler=make_sampler(pipeline.scheduler_config, 1),
        mesh=mesh,
    ).compile()
    images, finite = compiled.output_shardings
    assert images.is_equivalent_to(split, 4)
    assert all(part.is_equivalent_to(split, 1) for part in finite)
    program = compiled.as_text()
    assert "all-gather" not in program
    assert "all-reduce" not in program
    assert "collective-permute" not in program


@pytest.mark.parametrize("devices", [1, 2])
def test_slices_of_the_decoder_change_nothing_but_memory(
    devices: int, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    latents = np.random.default_rng(0).standard_normal((12, 8, 8, 4)).astype(np.float32)
    vae, params = pipeline.vae, pipeline.params["vae"]
    split = parallel.sharded(mesh)

    def compiled(pixels: int) -> jax.stages.Compiled:
        monkeypatch.setattr(generation, "SLICE", pixels)
        decode = jax.jit(
            lambda params, latents: generation._decode(params, latents, vae, devices),
            in_shardings=(parallel.replicated(mesh), split),
            out_shardings=split,
        )
        return decode.lower(params, latents).compile()

    whole, sliced = compiled(12 * 256), compiled(2 * 256)  # images of 16 x 16 pixels, two a slice
    for collective in ("all-gather", "all-reduce", "collective-permute", "all-to-all"):
        assert collective not in sliced.as_text()
    placed = jax.device_put(params, parallel.replicated(mesh)), jax.device_put(latents, split)
    images, expected = (np.asarray(program(*placed)[0]) for program in (sliced, whole))
    assert images.shape == (12, 16, 16, 3)
    assert np.abs(images.astype(int) - expected).max() <= 1
    assert np.abs(np.diff(images.astype(int), axis=0)).max(axis=(1, 2, 3)).min() > 20  # all differ
    temporary = [p.memory_analysis().temp_size_in_bytes for p in (sliced, whole)]
    assert temporary[0] < temporary[1] / (12 // devices // 2) * 1.5


def test_what_is_drawn_lies_split_and_each_device_does_its_share(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that `generate` makes itself: arguments, results and work of every device."""
    calls = []

    def noted(*arguments: Any, **options: Any) -> Any:
        compiled = draw.lower(*arguments, **options).compile()
        drawn = draw(*arguments, **options)
        calls.append((arguments, drawn[0], compiled.cost_analysis()["flops"]))
        return drawn

    monkeypatch.setattr("emcid_jax.pipelines.generate.draw", noted)
    prompts, seeds = PROMPTS[:1] * 4, [1, 2, 3, 4]
    for devices in (1, 4):
        mesh = parallel.make_mesh(jax.devices()[:devices])
        generate(pipeline, prompts, seeds, mesh=mesh, **SETTINGS)
    (_, _, whole), ((models, text, noise, _), images, share) = calls
    split = parallel.sharded(mesh)
    for array in (text.tokens, noise, images):
        assert array.sharding.is_equivalent_to(split, array.ndim)
        assert {len(shard.data) for shard in array.addressable_shards} == {1}
        assert len({shard.device for shard in array.addressable_shards}) == 4
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(models))
    # A program that computed the batch everywhere would do all of it on each.
    assert 0.2 * whole < share < 0.35 * whole


def test_devices_that_share_weights_draw_the_same(pipeline: Pipeline) -> None:
    prompts, seeds = PROMPTS[:1] * 4, [1, 2, 3, 4]
    alone, shared = (
        generate(
            pipeline,
            prompts,
            seeds,
            mesh=parallel.make_mesh(jax.devices()[:4], weight_shards=count),
            **SETTINGS,
        )
        for count in (1, 4)
    )
    assert np.abs(shared.astype(int) - alone).max() <= 1


def test_prompts_and_seeds_must_match(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="3 prompts but 1 seeds"):
        generate(pipeline, PROMPTS, [1], steps=2, guidance=4.0)
