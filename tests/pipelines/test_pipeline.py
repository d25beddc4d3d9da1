"""Folders in and out, as diffusers reads and writes them; one clear error for broken ones."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.flatten_util import ravel_pytree

from emcid_jax.diffusion.samplers import UNDRAWN
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines import single_file
from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.pipelines.diffusers_layout import write_configs, write_index
from emcid_jax.pipelines.families import SD, SDXL
from emcid_jax.pipelines.generate import encode_prompts, generate, initial_noise
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, save_pipeline, with_text_params
from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.runtime.errors import UserError

PROMPTS = ["a photo of a dog on the beach", "a painting by Vincent van Gogh", ""]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def text_params(pipeline: Pipeline) -> Any:
    return pipeline.params["text_encoder"]


def test_another_text_encoder_leaves_the_base_alone(pipeline: Pipeline) -> None:
    before = params_hash(text_params(pipeline))
    edited = with_text_params(
        pipeline, {"text_encoder": jax.tree.map(lambda x: 1.5 * x, text_params(pipeline))}
    )
    assert params_hash(text_params(pipeline)) == before
    assert edited.params["unet"] is pipeline.params["unet"]
    changed = np.asarray(encode_prompts(pipeline, PROMPTS, edited.params).tokens)
    np.testing.assert_array_equal(changed, encode_prompts(edited, PROMPTS).tokens)
    assert np.abs(changed - encode_prompts(pipeline, PROMPTS).tokens).max() > 0.1


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

    from diffusers import StableDiffusionPipeline

    oracle = StableDiffusionPipeline.from_pretrained(tmp_path / "full")
    oracle.set_progress_bar_config(disable=True)
    noise = torch.tensor(initial_noise(pipeline, SEEDS).transpose(0, 3, 1, 2))
    theirs = oracle(PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=4.0).images
    ours = generate(again, PROMPTS, SEEDS, steps=10, guidance=4.0)
    assert np.abs(ours.astype(int) - np.stack([np.asarray(i) for i in theirs])).max() <= 2


def set_json(path: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(content | fields))

    return change


def rescheduled(name: str, **fields: Any) -> Callable[[Path], None]:
    """Another sampler in the index, and `fields` in its file."""

    def damage(folder: Path) -> None:
        set_json("model_index.json", scheduler=["diffusers", name])(folder)
        set_json("scheduler/scheduler_config.json", _class_name=name, **fields)(folder)

    return damage


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        "model's index is .*model_index.json': no such file",
    ),
    "other pipeline": (
        set_json("model_index.json", _class_name="FluxPipeline"),
        "_class_name='FluxPipeline' is not supported; use",
    ),
    "other encoder": (
        set_json("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "text_encoder=.*T5EncoderModel.* is not supported; use CLIPTextModel",
    ),
    "no config": (
        lambda f: (f / "unet/config.json").unlink(),
        "unet's config is .*unet/config.json': no such file",
    ),
    "damaged config": (
        lambda f: (f / "vae/config.json").write_text("{"),
        "vae/config.json:1",
    ),
    "list config": (
        lambda f: (f / "vae/config.json").write_text("[]"),
        "vae/config.json: .* is no JSON object",
    ),
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
        r"length is 77, but .*encoder/config.json: max_position_embeddings is 32",
    ),
    "inpainting": (
        set_json("unet/config.json", in_channels=9),
        "in_channels is 9, but .*latent_channels is 4",
    ),
    "another unet": (
        set_json("unet/config.json", cross_attention_dim=64),
        r"cross_attention_dim is 64, but .*text_encoder/config.json: hidden_size is 32",
    ),
    "another output": (
        set_json("unet/config.json", out_channels=8),
        r"in_channels is 4, but .*unet/config.json: out_channels is 8; only text-to-image",
    ),
    "grey images": (set_json("vae/config.json", in_channels=1), "in_channels is 1; images have 3"),
    "huge images": (
        set_json("unet/config.json", sample_size=8000),
        r"sample_size is 8000, but .*vae/config.json: .* images have 16,000 pixels",
    ),
    "absurd depth": (
        set_json("text_encoder/config.json", num_hidden_layers=100_000),
        "text_encoder/config.json: num_hidden_layers is 100000; it must be >= 1 and <= 128",
    ),
    "text as a truth value": (
        set_json("unet/config.json", use_linear_projection="false"),
        "unet/config.json: use_linear_projection is 'false'; it must be True or False",
    ),
    "another end token": (
        set_json("text_encoder/config.json", eos_token_id=7),
        r"the end token has id \d+, but .*text_encoder/config.json: eos_token_id is 7; set it to",
    ),
    "fewer rows than tokens": (
        set_json("text_encoder/config.json", vocab_size=300),
        r"tokenizer: the token '<.endoftext.>' has id \d+, but .*vocab_size is 300, so",
    ),
    "another scheduler": (
        set_json("model_index.json", scheduler=["diffusers", "HeunDiscreteScheduler"]),
        r"scheduler=\['diffusers', 'HeunDiscreteScheduler'\] is not supported; use .*PNDM",
    ),
    "another noise schedule": (
        rescheduled("UniPCMultistepScheduler", use_flow_sigmas=True),
        "use_flow_sigmas=True is not supported; flow matching has another noise schedule",
    ),
    "an unread noise schedule": (
        rescheduled("DPMSolverMultistepScheduler", prediction_type="sample"),
        "prediction_type='sample' is not supported; use one of epsilon, v_prediction",
    ),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' LMS
@pytest.mark.parametrize("name", UNDRAWN)
def test_folders_of_samplers_that_nothing_draws_with_are_read_and_kept(
    name: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    import diffusers

    kind: Any = getattr(diffusers, name)
    shutil.copytree(tiny_pipeline_folder, tmp_path / "model")
    for settings in (
        {},
        {"beta_end": 0.01, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
    ):
        theirs = kind(**settings)
        theirs.save_pretrained(tmp_path / "model" / "scheduler")
        set_json("model_index.json", scheduler=["diffusers", name])(tmp_path / "model")
        read = load_pipeline(tmp_path / "model")
        ours = read.schedule.alphas_cumprod
        np.testing.assert_allclose(ours, theirs.alphas_cumprod.numpy(), rtol=1e-4)
        assert read.schedule.prediction_type == theirs.config.prediction_type
        planned = abstract_pipeline(tmp_path / "model").scheduler_config
        assert planned == read.scheduler_config
    with pytest.raises(UserError, match=f"_class_name='{name}' is not supported; to draw, let"):
        generate(read, PROMPTS[:1], SEEDS[:1], steps=1, guidance=1.0)

    save_pipeline(read, tmp_path / "saved")
    again = kind.from_pretrained(tmp_path / "saved" / "scheduler", local_files_only=True)
    fields = theirs.config.keys() - {"_use_default_values"}  # Those that a file need not give.
    assert {f: again.config[f] for f in fields} == {f: theirs.config[f] for f in fields}
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", name]


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


# VmHWM, not getrusage: that starts from the peak of the process that started this one.
MEASURED = """
import sys, time
from pathlib import Path
import jax
from emcid_jax.config import ModelConfig
from emcid_jax.workflow.open_model import open_model

began = time.perf_counter()
params = open_model(ModelConfig(path=sys.argv[1], unet_storage=sys.argv[2])).params
jax.block_until_ready(params)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(peak * 2**10, held, time.perf_counter() - began)
"""


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]], kind: str) -> int:
    """A safetensors file of zeros, which takes no space on disk. Gives its number of values."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * {"F32": 4, "F16": 2}[kind]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("version", "kind", "storage"),
    [(1, "F32", "float32"), (1, "F16", "float32"), ("xl", "F16", "bfloat16")],
)
def test_loading_a_published_model_takes_its_size_and_less_than_a_gigabyte(
    version: Any, kind: str, storage: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    configs, family = default_configs(version, "epsilon"), SDXL if version == "xl" else SD
    write_configs(tmp_path, configs, family)
    for part in family.encoders:
        shutil.copytree(tiny_pipeline_folder / "tokenizer", tmp_path / part.tokenizer)
        set_json(f"{part.tokenizer}/tokenizer_config.json", model_max_length=77)(tmp_path)
    write_index(tmp_path, configs["scheduler"]["_class_name"], family)
    names = single_file.names_of(configs)
    count = sum(
        write_zeros(tmp_path / part / file, dict(names[part]), kind)
        for part, file in family.weight_files.items()
    )
    command = [sys.executable, "-c", MEASURED, str(tmp_path), storage]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model, seconds = map(float, done.stdout.split())
    assert model == 4 * count if storage == "float32" else model < 3 * count
    print(
        f"\n{version} {kind}: model {model / 2**30:.2f} GiB, peak of the process "
        f"{peak / 2**30:.2f} GiB, {seconds:.0f} s"
    )
    assert model < peak < model + 2**30
