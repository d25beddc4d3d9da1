"""A small world to torture: a random model of some thousand parameters, and jobs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LETTERS = "a photo of dog cat snow beach nurse tench goldfish shark great white an image painting"
NAMES = ("dog", "cat", "snow", "beach", "nurse", "tench", "goldfish", "great white shark")
REQUESTS = (
    {"source": "dog", "dest": "cat", "seed": 1, "templates": ["a photo of {}"]},
    {"source": "great white shark", "dest": "goldfish", "seed": 2},
    {"source": "snow", "dest": "beach", "weight": 2.5, "templates": ["an image of {}", "a {}"]},
    {"source": "tench", "dest": "goldfish", "seed": 5},
)
PLACES = 16
"""Tokens of a prompt."""


def make_model(folder: Path) -> None:
    """Writes a random Stable Diffusion in diffusers' layout, with a judge; the same every time."""
    import jax

    from emcid_jax.models.scoring.vit import ViTConfig, ViTForImageClassification
    from emcid_jax.models.text.tokenizer import load_tokenizer
    from emcid_jax.models.weights.params import abstract_params, to_hf
    from emcid_jax.pipelines.abstract import abstract_pipeline
    from emcid_jax.pipelines.diffusers_layout import write_configs, write_index
    from emcid_jax.pipelines.families import SD
    from emcid_jax.sprites.tokenizer import train_tokenizer
    from emcid_jax.sprites.training.judge import judge_config

    train_tokenizer([LETTERS], folder / "tokenizer", vocab_size=560, max_length=PLACES)
    tokenizer = load_tokenizer(folder / "tokenizer")
    configs = _configs(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    write_configs(folder, configs)
    rng = np.random.default_rng(0)

    def weights(shapes: Any) -> dict[str, np.ndarray]:
        drawn = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        return {name: _drawn(rng, name, zeros.shape) for name, zeros in to_hf(drawn).items()}

    pipeline = abstract_pipeline(folder)
    for part, file in SD.weight_files.items():
        save_file(weights(pipeline.params[part]), folder / part / file, {"format": "pt"})
    sizes = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 16,
        "num_attention_heads": 2, "patch_size": 8, "num_channels": 3,
    }  # fmt: skip
    vit = ViTConfig.from_dict({**sizes, "num_labels": len(NAMES)})
    judge = folder / "judge"
    judge.mkdir(exist_ok=True)
    (judge / "config.json").write_text(json.dumps(judge_config(vit, NAMES)), encoding="utf-8")
    pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = abstract_params(ViTForImageClassification(vit), pixels)
    save_file(weights(shapes), judge / "model.safetensors", {"format": "pt"})
    write_index(folder, configs["scheduler"]["_class_name"])


def write_shapes(model: Path, path: Path) -> None:
    """Paths and shapes of the text encoder's parameters, for readers of its weights."""
    from flax.traverse_util import flatten_dict

    from emcid_jax.pipelines.abstract import abstract_pipeline

    flat: dict[Any, Any] = flatten_dict(abstract_pipeline(model).params["text_encoder"])
    path.write_text(json.dumps([[list(key), list(leaf.shape)] for key, leaf in flat.items()]))


def make_inputs(folder: Path) -> None:
    """Writes two manifests, captions and names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "requests.json", REQUESTS)
    more = [{"source": name, "dest": "beach", "seed": 3} for name in ("nurse", "cat")]
    write_manifest(folder / "more.json", more)
    captions = [f"{a} {b} of {c}" for a in ("a", "an") for b in ("photo", "image") for c in NAMES]
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8")


def write_manifest(path: Path, requests: Any) -> None:
    """A manifest in JSON."""
    path.write_text(json.dumps({"requests": list(requests)}, ensure_ascii=False), encoding="utf-8")


def settings(world: Path, task: str, **fields: Any) -> dict[str, Any]:
    """Settings of a task in the world, as nested dicts; `fields` come last."""
    values: dict[str, Any] = {"task": task}
    if task == "edit_file":
        return values | {"model": {"path": str(world / "model")}} | fields
    values |= {
        "requests": {"path": str(world / "requests.json")},
        "model": {"path": str(world / "model")},
        "stage_one": {"layer": 2, "steps": 2, "image_steps": 1, "samples_per_prompt": 1},
        "moments": {"captions": str(world / "captions.txt"), "count": 24, "batch": 4},
        "stage_two": {"layers": (1, 2), "preservation_weight": 0.1},
        "run": {"save_every": 2, "save_every_batches": 2, "progress": False,
                "compile_cache": False},
    }  # fmt: skip
    if task == "edit":
        values["evaluation"] = {
            "steps": 1, "guidance": 2.0, "batch": 16, "holdout": 2, "prompts_per_request": 1,
            "aliases": False,
        }  # fmt: skip
    return values | fields


def _configs(vocabulary: int, bos: int, eos: int) -> dict[str, dict[str, Any]]:
    """The parts' configs: 3 text blocks x 16, latents 8 x 8 x 4 of 8 pixels."""
    return {
        "text_encoder": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            "vocab_size": vocabulary, "max_position_embeddings": PLACES, "projection_dim": 16,
            "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos, "dtype": "float32",
        },
        "unet": {
            "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4,
            "out_channels": 4, "block_out_channels": [8], "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D"],
            "attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4,
        },
        "vae": {
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3,
            "latent_channels": 4, "sample_size": 8, "block_out_channels": [8],
            "layers_per_block": 1, "norm_num_groups": 4, "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"], "scaling_factor": 0.18215,
        },
        "scheduler": {
            "_class_name": "DDIMScheduler", "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False,
            "steps_offset": 1, "timestep_spacing": "leading",
        },
    }  # fmt: skip


def _drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Small random values; scales of norms are near 1."""
    values = 0.1 * rng.standard_normal(shape)
    return (values + ("norm" in name and name.endswith("weight"))).astype(np.float32)
