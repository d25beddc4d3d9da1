"""Whether the parts of a model belong together, from their configs alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.conditioning import TIME_IDS
from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig
from emcid_jax.pipelines.families import Family
from emcid_jax.runtime.errors import UserError, shown

MOST_PIXELS = 8192
"""Along one side of an image."""


class _Field(NamedTuple):
    file: Path
    name: str
    value: object

    def __str__(self) -> str:
        return f"{self.file}: {self.name} is {self.value}"


def require_fitting(
    family: Family,
    texts: Mapping[str, ClipTextConfig],
    unet: UNetConfig,
    vae: VaeConfig,
    schedule: NoiseSchedule,
    files: Mapping[str, Path],
) -> None:
    """Holds the parts against each other; `texts` and `files` go by part.

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
    _require_equal(cross, _states(family, texts, files), same)
    if family.joined:
        _require_sizes(family, texts, unet, files)
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
    widths = [text.hidden_size for text in texts.values()]
    if (widths, size, schedule.prediction_type) == ([1024], 96, "epsilon"):
        said = _Field(files["scheduler"], "prediction_type", schedule.prediction_type)
        logging.warning(
            "%s, but %s: sample_size is 96, as in Stable Diffusion 2 of 768 pixels, which predicts "
            "v_prediction; set it if the pictures are noise",
            said,
            files["unet"],
        )


def _states(
    family: Family, texts: Mapping[str, ClipTextConfig], files: Mapping[str, Path]
) -> _Field:
    """Width of the states that the denoiser reads."""
    first, *others = family.text_parts
    name = "hidden_size"
    if others:
        name += " and ".join(["", *(f"that of {files[part]}" for part in others)]) + ", together,"
    return _Field(files[first], name, sum(texts[part].hidden_size for part in family.text_parts))


def _require_sizes(
    family: Family,
    texts: Mapping[str, ClipTextConfig],
    unet: UNetConfig,
    files: Mapping[str, Path],
) -> None:
    """UserError unless the UNet reads the pooled state and as many sizes as there are."""
    last = family.text_parts[-1]
    if unet.addition_embed_type != "text_time":
        raise UserError(
            f"{files['unet']}: addition_embed_type is {shown(unet.addition_embed_type)}; a "
            f"{family.pipeline_class} needs text_time"
        )
    pooled, each = texts[last].projection_dim, unet.addition_time_embed_dim or 0
    size = pooled + len(TIME_IDS) * each
    if size != unet.projection_class_embeddings_input_dim:
        raise UserError(
            f"{files['unet']}: projection_class_embeddings_input_dim is "
            f"{unet.projection_class_embeddings_input_dim}, but {files[last]}: projection_dim is "
            f"{pooled} and {len(TIME_IDS)} sizes of addition_time_embed_dim {each} make {size}; "
            "take both parts from one model"
        )


def _require_equal(one: _Field, other: _Field, remedy: str) -> None:
    if one.value != other.value:
        raise UserError(f"{one}, but {other}; {remedy}")
