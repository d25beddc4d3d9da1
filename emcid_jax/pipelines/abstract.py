"""Models without weights: a pipeline whose parameters are shapes, for compiling and counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from emcid_jax.models.text.clip import ClipTextConfig
from emcid_jax.models.text.encoder import SECOND
from emcid_jax.pipelines.families import SD, SDXL, read_config, read_family
from emcid_jax.pipelines.pipeline import Pipeline, make_pipeline, parameter_shapes
from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.text_files import read_json_object

NAMES = {
    "sd-1.4": (1, "epsilon"),
    "sd-1.5": (1, "epsilon"),
    "sd-2.1-base": (2, "epsilon"),
    "sd-2.1": (2, "v_prediction"),
    "sdxl-base": ("xl", "epsilon"),
}
"""Published architectures: version, and what the UNet predicts."""

Configs = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(eq=False)
class NoTokenizer:
    """Stands where a pipeline has its tokenizer; knows how long prompts are, and no words."""

    model_max_length: int
    bos_token_id: int = 0
    eos_token_id: int = 0
    pad_token_id: int = 0
    backend_tokenizer: Any = None

    def __len__(self) -> int:
        """No tokens."""
        return 0

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Not available: there are only shapes."""
        raise NotImplementedError(f"no tokenizer for {text}")

    def save_pretrained(self, save_directory: str) -> Any:
        """Not available: there are only shapes."""
        raise NotImplementedError(f"no tokenizer for {save_directory}")


def abstract_pipeline(model: str | Path, dtype: DTypeLike = jnp.float32) -> Pipeline:
    """A pipeline with `jax.ShapeDtypeStruct`s for parameters.

    Args:
        model: a name in NAMES, or a folder in diffusers' layout; its JSON files are enough.
        dtype: of the computation.

    Raises:
        UserError: a JSON file is missing, unreadable or of an unsupported model.
    """
    family = SD
    if model in NAMES:
        folder, configs = Path(str(model)), default_configs(*NAMES[str(model)])  # type: ignore[arg-type]
        family = SDXL if SECOND in configs else SD
    else:
        folder = Path(model)
        if not folder.is_dir():
            raise UserError(
                f"config.model.path is {str(model)!r}, no folder here; give a diffusers folder, of "
                f"which the JSON files are enough, or one of {', '.join(NAMES)}"
            )
        if (folder / "model_index.json").is_file():
            index = read_json_object(folder / "model_index.json", "the model's index")
            family = read_family(index, folder)
        configs = {
            part: read_config(part, folder / part / file, f"{file} of config.model.path")
            for part, file in family.config_files.items()
        }
    tokenizers = {}
    for part, name in family.config_files.items():
        if part in family.text_parts:
            text = ClipTextConfig.from_dict(configs[part], folder / part / name)
            tokenizers[part] = NoTokenizer(text.max_position_embeddings)
    empty = make_pipeline(configs, {}, tokenizers, folder, dtype, family)
    return dataclasses.replace(empty, params=parameter_shapes(empty))
