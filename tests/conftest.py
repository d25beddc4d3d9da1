"""Eight virtual CPU devices, and a random Stable Diffusion of a few thousand parameters."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Most of the suite's time is XLA's. All of this is read at JAX's first use, here, in the other
# workers and in commands that tests run: a program is compiled in one of them and read in the rest.
# Not optimised, and fused loops emitted the older way: that is two thirds of the time to compile.
# XLA stops at a flag that it does not know, so later versions, which may drop it, do not get it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else ""
    ),
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="emcid-jax-tests-")  # Deleted at the end.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

MINUTES = (
    "tests/baselines/test_fine_tune.py",
    "tests/benchmarks/test_accelerator.py::test_every_part_is_timed_and_counted",
    "tests/benchmarks/test_torture.py",
    "tests/concepts/readers/test_manifests.py::test_manifests_round_trip",
    "tests/concepts/test_conflicts.py::test_a_long_chain_needs_no_recursion",
    "tests/diffusion/test_parity.py",
    "tests/editing/bank/test_concepts.py::test_two_processes_add_at_once_while_a_third_reads",
    "tests/editing/debias/test_offset_images.py",
    "tests/editing/encoder/test_whole_prompts.py",
    "tests/editing/moments/test_second_moment.py::test_eight_devices_give_the_same",
    "tests/editing/moments/test_second_moment.py::test_equals_brute_force",
    "tests/editing/moments/test_second_moment.py::test_legacy_end_token_is_the_highest_id",
    "tests/editing/stage_one/test_loss.py",
    "tests/editing/stage_one/test_loss_xl.py",
    "tests/editing/stage_one/test_prompt_end.py",
    "tests/editing/stage_one/test_random_draws.py::test_draws_depend_on_seed_step_and_prompt_only",
    "tests/editing/stage_one/test_run.py",
    "tests/editing/stage_one/test_training_images.py",
    "tests/editing/stage_two/test_preservation.py::test_kept_keys_are_those_of_every_token",
    "tests/editing/units/test_room.py",
    "tests/editing/units/test_solve.py",
    "tests/evaluation/benchmarks/aice/test_run.py",
    "tests/evaluation/benchmarks/test_quality.py",
    "tests/evaluation/text_space/test_measure.py::test_what_is_measured",
    "tests/evaluation/text_space/test_trace_scores.py",
    "tests/models/image/test_blocks.py::test_convolutions_and_their_gradients_are_torchs",
    "tests/models/image/test_blocks.py::test_many_images_are_convolved_as_each_alone",
    "tests/models/image/test_unet.py",
    "tests/models/image/test_vae.py",
    "tests/models/scoring/",
    "tests/models/text/test_clip.py::test_full_size_states_equal_transformers",
    "tests/models/weights/test_safetensors_files.py::test_loading_holds_the_model_and_little_more",
    "tests/pipelines/test_abstract.py",
    "tests/pipelines/test_any_config.py::test_what_is_accepted_is_built",
    "tests/pipelines/test_generate.py",
    "tests/pipelines/test_pipeline.py::test_saved_folders_are_read_by_us_and_by_diffusers",
    "tests/pipelines/test_pipeline_xl.py",
    "tests/pipelines/test_single_file.py",
    "tests/pipelines/test_single_file_xl.py",
    "tests/planning/test_traced_programs.py",
    "tests/runtime/test_parallel.py",
    "tests/sprites/training/test_interchange.py",
    "tests/sprites/training/test_judge.py",
    "tests/sprites/training/test_loop.py",
    "tests/tasks/",
    "tests/test_api.py",
    "tests/test_main.py",
    "tests/test_notebooks.py::test_the",
    "tests/test_ownership_walk.py",
    "tests/workflow/test_debias_search.py",
    "tests/workflow/test_find_memories.py",
    "tests/workflow/test_open_model.py",
    "tests/workflow/test_profile.py::test_the_trace_of_stage_one_names_the_operations_of_its_loop",
    "tests/workflow/test_sweep_processes.py",
)
"""Beginnings of the names of tests that take more than about 5 s of a core each; these are marked
`minutes`, so that `-m "not slow and not minutes"` leaves what runs after every change."""

CORPUS = """
a photo of a dog on the beach, a photo of a cat in the snow, an image of a golden retriever
a painting by Vincent van Gogh, a drawing in the style of Claude Monet, the art of Salvador Dali
a picture of a great white shark, a tench and a goldfish in the water, an image of a nurse
a female doctor, a male doctor, the portrait of an engineer, a red sports car in the city
"""


TINY_VAE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
}
"""Of both tiny models, in diffusers' words."""


@pytest.hookimpl(tryfirst=True)  # Before `-m` chooses.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of `MINUTES`."""
    for item in items:
        if item.nodeid.startswith(MINUTES):
            item.add_marker("minutes")


def pytest_collection_finish() -> None:
    """Spares the collector what is imported by now, and most of its rounds.

    A worker lives long and holds millions of objects: looking at them took 6 % of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def tiny_tokenizer() -> Any:
    """A tokenizer in CLIP's format (bytes, bytes at word ends, merges, two specials), 32 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    pipeline = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS.splitlines(), trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    names = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion that diffusers wrote: 4 text blocks x 32, latents 8x8x4 of 16 px.

    Sampled by DDIM; the tokenizer folder has CLIP's vocab.json and merges.txt. Do not write to it.
    """
    import torch  # slow imports: only tests that need the folder pay for them
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=32,
            projection_dim=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        text = CLIPTextModel(text_config)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(**TINY_VAE)
    with torch.no_grad():  # images depend visibly on the prompt
        for name, parameter in unet.named_parameters():
            if ".attn2." in name:
                parameter *= 3
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    folder = tmp_path_factory.mktemp("tiny-stable-diffusion")
    StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="session")
def tiny_xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL that diffusers wrote: text blocks 4 x 32 (quick GELU) and 5 x 48 (GELU), the
    second tokenizer pads with `!`, latents 8x8x4 of 16 px, Euler. Do not write to it.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    second = copy.deepcopy(tokenizer)
    second.pad_token = "!"
    common = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_factor": 2.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
        first_text = CLIPTextModel(CLIPTextConfig(**common, **sizes, hidden_act="quick_gelu"))
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5}
        second_text = CLIPTextModelWithProjection(
            CLIPTextConfig(**common, **sizes, hidden_act="gelu", projection_dim=40, pad_token_id=0)
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            cross_attention_dim=80,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=88,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(**TINY_VAE, scaling_factor=0.13025)
    with torch.no_grad():  # images depend visibly on the prompt and on the sizes
        for name, parameter in unet.named_parameters():
            if ".attn2." in name or "add_embedding" in name:
                parameter *= 3
        draws = torch.Generator().manual_seed(2)
        for part in (first_text, second_text, unet, vae):  # Norms are 1 and biases 0 else.
            for parameter in part.parameters():
                if parameter.ndim == 1:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    folder = tmp_path_factory.mktemp("tiny-sdxl")
    StableDiffusionXLPipeline(
        vae, first_text, second_text, tokenizer, second, unet, scheduler, add_watermarker=False
    ).save_pretrained(folder)
    for name, one in (("tokenizer", tokenizer), ("tokenizer_2", second)):
        one.backend_tokenizer.model.save(str(folder / name))
    return folder


@pytest.fixture(scope="session")
def write_tiny_judge() -> Callable[..., None]:
    """Writes a random ViT classifier of 16-pixel images to a folder, with transformers.

    The larger `spread`, the more its answers differ between images.
    """
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    def write(folder: Path, labels: Sequence[str], spread: float = 1.0) -> None:
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            initializer_range=spread,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ViTForImageClassification(config).save_pretrained(folder)

    return write


@pytest.fixture(scope="session")
def write_tiny_image_tower() -> Callable[[Path], None]:
    """Writes a random CLIP image tower of 16-pixel images, with a text projection in its file."""
    import torch
    from safetensors.numpy import load_file, save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    def write(folder: Path) -> None:
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=6,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            CLIPVisionModelWithProjection(config).save_pretrained(folder)
        file = folder / "model.safetensors"
        projection = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
        save_file(load_file(file) | {"text_projection.weight": projection}, file)

    return write


@pytest.fixture(scope="session")
def benchmark_files() -> Path:
    """Published request files in their layout: excerpts, or the files themselves where they are.

    See tests/data/benchmarks/SOURCES.md.
    """
    excerpts = Path(__file__).parent / "data" / "benchmarks"
    return Path(os.environ.get("EMCID_JAX_BENCHMARKS") or excerpts)


@pytest.fixture(scope="session")
def small_ledger() -> Callable[..., dict[str, Any]]:
    """The ledger of an edit of one request that wrote the given layers, with other `fields`."""

    def make(*layers: int, **fields: Any) -> dict[str, Any]:
        solved = {"form": "dual", "condition": 10.0, "asked": 1.0, "left": 0.5, "change": 0.1}
        reports = [{"layer": layer, "device_error": None} | solved for layer in layers]
        request = {"source": "dog", "dest": ["cat"], "task": "update", "weight": 1.0}
        ledger = {
            "format": 2,
            "base": {"text_encoder": "a" * 64},
            "edited": "b" * 64,
            "stage_one": [{"layer": layers[-1]}],
            "moments": {"captions": 7},
            "stage_two": {"layers": list(layers)},
            "report": {"distance_before": 2.0, "distance_after": 1.0, "layers": reports},
            "requests": [request | {"strength": 0.5, "memory": "ab" * 32}],
        }
        return ledger | fields

    return make
