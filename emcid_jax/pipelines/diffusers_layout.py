"""What lies where in a Stable Diffusion folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcid_jax.runtime.files import write_atomically

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
"""Component -> library and class that `model_index.json` names for it."""
WEIGHT_FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
CONFIG_FILES = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
}


def write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the JSON file of every component in CONFIG_FILES."""
    for part, name in CONFIG_FILES.items():
        write_json(folder / part / name, configs[part])


def write_index(folder: Path, scheduler: str) -> None:
    """Writes `model_index.json`, the last file of a folder; `scheduler` is the sampler's class."""
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {part: list(name) for part, name in CLASSES.items()}
    index |= {part: [None, None] for part in ("safety_checker", "feature_extractor")}
    write_json(folder / "model_index.json", index | {"scheduler": ["diffusers", scheduler]})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all, keys sorted."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
