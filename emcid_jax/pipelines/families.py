"""Families of models: which parts a diffusers folder holds, and how text states are joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from emcid_jax.models.image.conditioning import Conditioning
from emcid_jax.models.text.clip import TextOutput
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.storage.text_files import read_json_object

_FILES = {
    FIRST: ("config.json", "model.safetensors"),
    SECOND: ("config.json", "model.safetensors"),
    "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
}
"""Part -> names of its config and its weights."""


@dataclasses.dataclass(frozen=True)
class EncoderPart:
    """A text encoder's place in a folder."""

    name: str
    """FIRST or SECOND; the folder of its weights."""
    tokenizer: str
    """Folder of its tokenizer."""
    projection: bool = False
    """Whether it projects its pooled state: transformers' CLIPTextModelWithProjection."""

    @property
    def transformers_class(self) -> str:
        """Its class in `model_index.json`."""
        return "CLIPTextModelWithProjection" if self.projection else "CLIPTextModel"


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of text-to-image model."""

    pipeline_class: str
    """`_class_name` of `model_index.json`."""
    encoders: tuple[EncoderPart, ...]
    joined: bool
    """Whether the denoiser reads the last but one hidden states of all encoders, side by side and
    without the final norm, and the projected state of the last encoder. Else it reads the final
    states of the only one."""
    absent: tuple[str, ...]
    """Optional components that a written folder says it lacks."""
    options: tuple[tuple[str, bool], ...] = ()
    """Further keys of a written `model_index.json`."""

    @property
    def weight_files(self) -> dict[str, str]:
        """Part with weights -> its file's name."""
        return {part: _FILES[part][1] for part in (*self.text_parts, "unet", "vae")}

    @property
    def config_files(self) -> dict[str, str]:
        """Part with a config -> its file's name."""
        configs = {part: _FILES[part][0] for part in (*self.text_parts, "unet", "vae")}
        return configs | {"scheduler": "scheduler_config.json"}

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Names of the encoders."""
        return tuple(part.name for part in self.encoders)

    @property
    def classes(self) -> dict[str, tuple[str, str]]:
        """Component -> library and class that `model_index.json` names for it."""
        text = {part.name: ("transformers", part.transformers_class) for part in self.encoders}
        tokenizers = {part.tokenizer: ("transformers", "CLIPTokenizer") for part in self.encoders}
        image = {
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        }
        return text | image | tokenizers

    def index(self, scheduler: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of `model_index.json`; `scheduler` is the sampler's class."""
        index: dict[str, Any] = {"_class_name": self.pipeline_class, **dict(self.options)}
        index |= {part: list(names) for part, names in self.classes.items()}
        index |= {part: [None, None] for part in self.absent}
        return index | {"scheduler": ["diffusers", scheduler]} | dict(options or {})

    def condition(self, outputs: Sequence[TextOutput]) -> Conditioning:
        """What the denoiser reads of the encoders' outputs, float32, without sizes."""
        if not self.joined:
            return Conditioning(outputs[0].last_hidden_state.astype(jnp.float32))
        states, pooled = [output.hidden[-2] for output in outputs], outputs[-1].projected
        if pooled is None or any(state is None for state in states):
            raise ValueError("the last block or the projection was not run")
        return Conditioning(
            jnp.concatenate([jnp.asarray(state, jnp.float32) for state in states], axis=-1),
            pooled.astype(jnp.float32),
        )


SD = Family(
    "StableDiffusionPipeline",
    (EncoderPart(FIRST, "tokenizer"),),
    joined=False,
    absent=("safety_checker", "feature_extractor"),
    options=(("requires_safety_checker", False),),
)
"""Stable Diffusion 1.x and 2.x."""

SDXL = Family(
    "StableDiffusionXLPipeline",
    (EncoderPart(FIRST, "tokenizer"), EncoderPart(SECOND, "tokenizer_2", projection=True)),
    joined=True,
    absent=("feature_extractor", "image_encoder"),
    options=(("force_zeros_for_empty_prompt", True),),
)
"""Stable Diffusion XL and what was fine-tuned from it."""

FAMILIES = {family.pipeline_class: family for family in (SD, SDXL)}
"""By `_class_name`."""


def read_family(index: Mapping[str, Any], folder: Path) -> Family:
    """The family that the content of `folder`'s `model_index.json` names; UserError if unknown."""
    found = index.get("_class_name")
    if not isinstance(found, str) or found not in FAMILIES:
        raise UserError(
            f"{folder / 'model_index.json'}: _class_name={shown(found)} is not supported; use a "
            f"folder of a {' or '.join(FAMILIES)}"
        )
    return FAMILIES[found]


def read_config(part: str, file: Path, field: str) -> dict[str, Any]:
    """The JSON of a part of a model; UserError that names `field` if there is none."""
    # diffusers writes `lambda_min_clipped` of its DPM-Solver as -Infinity.
    return read_json_object(file, field, infinities=part == "scheduler")
