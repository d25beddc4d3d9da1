"""Whether the parts of a Stable Diffusion belong together, from their configs alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig
from emcid_jax.runtime.errors import UserError

MOST_PIXELS = 8192
"""Along one side of an image."""


class _Field(NamedTuple):
    file: Path
    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.file}: {self.name} is {self.value}"


def require_fitting(
    text: ClipTextConfig,
    unet: UNetConfig,
    vae: VaeConfig,
    schedule: NoiseSchedule,
    files: Mapping[str, Path],
) -> None:
    """Holds the parts against each other; `files` are those of the configs, by part.

    A published combination of sizes whose scheduler predicts something else is warned about: a
    fine-tuned model may have been trained so.

    Raises:
        UserError: two parts are not of one text-to-image model: a line with both files and values.
    """
    same = "take both parts from one model"
    only = "only text-to-image models are supported"
    size = unet.sample_size if isinstance(unet.sample_size, int) else max(unet.sample_size)
    cross = _Field(files["unet"], "cross_attention_dim", unet.cross_attention_dim[0])
    latents = _Field(files["unet"], "in_channels", unet.in_channels)
    width = _Field(files["text_encoder"], "hidden_size", text.hidden_size)
    _require_equal(cross, width, same)
    _require_equal(latents, _Field(files["vae"], "latent_channels", vae.latent_channels), only)
    _require_equal(latents, _Field(files["unet"], "out_channels", unet.out_channels), only)
    for name in ("in_channels", "out_channels"):
        if getattr(vae, name) != 3:
            raise UserError(f"{files['vae']}: {name} is {getattr(vae, name)}; images have 3")
    if size * vae.downscale > MOST_PIXELS:
        raise UserError(
            f"{files['unet']}: sample_size is {size}, but {files['vae']}: block_out_channels has "
            f"{len(vae.block_out_channels)} entries, so images have {size * vae.downscale:,} "
            f"pixels along a side; at most {MOST_PIXELS:,} are drawn"
        )
    if (text.hidden_size, size, schedule.prediction_type) == (1024, 96, "epsilon"):
        said = _Field(files["scheduler"], "prediction_type", schedule.prediction_type)
        logging.warning(
            "%s, but %s: sample_size is 96, as in Stable Diffusion 2 of 768 pixels, which predicts "
            "v_prediction; set it if the pictures are noise",
            said,
            files["unet"],
        )


def _require_equal(one: _Field, other: _Field, remedy: str) -> None:
    if one.value != other.value:
        raise UserError(f"{one}, but {other}; {remedy}")
