"""Stable Diffusion in one file: the key names of the latent-diffusion code (LDM).

Such a file holds all parts under the names of the code they were trained with: `cond_stage_model`
or `conditioner.embedders` (text encoders; CLIP-L in transformers' names, OpenCLIP's in its own),
`model.diffusion_model` (UNet) and `first_stage_model` (autoencoder). `locate_...` say where the
tensor of a diffusers folder is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.pipelines.published_configs import Version
from emcid_jax.runtime.errors import UserError

Shape = tuple[int, ...]

TEXT: Mapping[Version, Mapping[str, str]] = {
    1: {FIRST: "cond_stage_model.transformer."},
    2: {FIRST: "cond_stage_model.model."},
    "xl": {
        FIRST: "conditioner.embedders.0.transformer.",
        SECOND: "conditioner.embedders.1.model.",
    },
    "refiner": {SECOND: "conditioner.embedders.0.model."},
}
"""Version -> text encoder -> how its keys begin: `model` is OpenCLIP, `transformer` the other."""
UNET = "model.diffusion_model."
VAE = "first_stage_model."
NAMES: Mapping[Version, str] = {
    1: "Stable Diffusion 1.x",
    2: "Stable Diffusion 2.x",
    "xl": "Stable Diffusion XL",
    "refiner": "Stable Diffusion XL's refiner",
}

_IN = f"{UNET}input_blocks.0.0.weight"
_TOKENS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "token_embedding.weight",
)
# What a key says about a file that is something else; the first hit names it.
_FOREIGN = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "control_model.": "a ControlNet",
    "edm_": "a model of another noise schedule (EDM)",
    "lora_": "a LoRA, which changes a model but is none",
}
_SIZES = f"{UNET}label_emb."


class Place(NamedTuple):
    """Where a tensor is."""

    key: str
    third: int | None = None
    """OpenCLIP stacks query, key and value: which of them, along the leading axis."""
    transposed: bool = False
    """OpenCLIP's projection is (in, out); a linear layer is stored (out, in)."""


def version_of(shapes: Mapping[str, Shape], source: object) -> Version:
    """Which model it is, from all keys and shapes of the file `source`.

    Raises:
        UserError: another kind of model; names the file and the key that says so.
    """
    only = "only Stable Diffusion 1.x, 2.x and XL are supported"
    for mark, model in _FOREIGN.items():
        key = next((key for key in shapes if mark in key), None)
        if key is not None:
            raise UserError(f"{source}: {key} belongs to {model}; {only}")
    if _IN not in shapes:
        raise UserError(
            f"{source}: has no {_IN}, so it is no Stable Diffusion file in LDM's key names; a "
            "diffusers component is given as the folder that holds model_index.json"
        )
    if shapes[_IN][1] != 4:
        raise UserError(
            f"{source}: {_IN} has {shapes[_IN][1]} input channels, text-to-image has 4; {only}"
        )
    for version, texts in TEXT.items():
        first = next(iter(texts.values()))
        if any(first + tokens in shapes for tokens in _TOKENS):
            sizes = next((key for key in shapes if key.startswith(_SIZES)), None)
            if sizes is not None and version in (1, 2):
                model = "a model with further conditions (upscaler, unCLIP)"
                raise UserError(f"{source}: {sizes} belongs to {model}; {only}")
            return version
    tokens = TEXT[1][FIRST] + _TOKENS[0]
    raise UserError(f"{source}: has no {tokens}, so no text encoder; {only}")


def locate_text(name: str, part: str, version: Version, keys: Collection[str]) -> Place:
    """The place of a tensor of the text encoder `part` (transformers' name) among `keys`."""
    start = TEXT[version][part]
    if start.endswith("transformer."):
        # Early files were saved by a transformers without the prefix.
        plain = start + name.removeprefix("text_model.")
        return Place(plain if plain in keys else start + name)
    if name == "text_projection.weight":
        return Place(f"{start}text_projection", transposed=True)
    top = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    if name in top:
        return Place(start + top[name])
    _, _, _, block, *layer, leaf = name.split(".")
    start += f"transformer.resblocks.{block}."
    stacked = ("q_proj", "k_proj", "v_proj")
    if layer[-1] in stacked:
        return Place(f"{start}attn.in_proj_{leaf}", stacked.index(layer[-1]))
    inside = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    return Place(f"{start}{inside['.'.join(layer)]}.{leaf}")


def locate_unet(name: str, config: UNetConfig) -> Place:
    """The place of a tensor of `unet` (diffusers' name)."""
    top = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    module, _, leaf = name.rpartition(".")
    if module in top:
        return Place(f"{UNET}{top[module]}.{leaf}")
    side, *rest = name.split(".")
    # LDM counts layers through all resolutions; each has one count for its resampling (down) or
    # its additional resnet (up).
    per_level = config.layers_per_block[0] + 1
    if side == "mid_block":
        kind, index, *inside = rest
        start = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
    else:
        level, kind, index, *inside = rest
        count = int(level) * per_level + int(index)
        if kind == "downsamplers":
            start, inside = f"input_blocks.{(int(level) + 1) * per_level}.0.op", inside[1:]
        elif kind == "upsamplers":
            attends = config.up_block_types[int(level)].startswith("CrossAttn")
            last = int(level) * per_level + per_level - 1
            start = f"output_blocks.{last}.{2 if attends else 1}"
        else:
            blocks, count = ("input", count + 1) if side == "down_blocks" else ("output", count)
            start = f"{blocks}_blocks.{count}.{0 if kind == 'resnets' else 1}"
    if kind == "resnets":
        inside = [_RESNET[inside[0]], *inside[1:]]
    return Place(f"{UNET}{start}.{'.'.join(inside)}")


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def locate_vae(name: str, config: VaeConfig) -> Place:
    """The place of a tensor of `vae` (diffusers' name)."""
    half, part, *rest = name.split(".")
    if part in ("down_blocks", "up_blocks"):
        level, kind, index, layer, *leaf = rest
        side = part.removesuffix("_blocks")
        # The decoder's blocks count from the image inwards, diffusers' from the latents outwards.
        place = int(level) if side == "down" else len(config.block_out_channels) - 1 - int(level)
        if kind == "resnets":
            layer = "nin_shortcut" if layer == "conv_shortcut" else layer
            inside = ["block", index, layer, *leaf]
        else:
            inside = [f"{side}sample", layer, *leaf]
        return Place(f"{VAE}{half}.{side}.{place}.{'.'.join(inside)}")
    if part == "mid_block":
        kind, index, *inside = rest
        if kind == "resnets":
            return Place(f"{VAE}{half}.mid.block_{int(index) + 1}.{'.'.join(inside)}")
        layers = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return Place(f"{VAE}{half}.mid.attn_1.{layers[inside[0]]}.{inside[-1]}")
    if part == "conv_norm_out":
        return Place(f"{VAE}{half}.norm_out.{rest[0]}")
    return Place(VAE + name)


def is_needed(key: str, version: Version, blocks: Mapping[str, int]) -> bool:
    """Whether a key is part of the model; the rest of a training checkpoint is not.

    `blocks` says how many each text encoder has: Stable Diffusion 2 reads the output of OpenCLIP's
    last but one, so the last block and the projection in its files are unused.
    """
    texts = TEXT[version]
    if not key.startswith((*texts.values(), UNET, VAE)) or key.startswith(f"{VAE}loss."):
        return False
    if key.endswith(("position_ids", "logit_scale", "attn_mask")):
        return False
    for part, start in texts.items():
        if key == f"{start}text_projection":
            return part == SECOND
        if key == f"{start}text_projection.weight":
            return False
        before = f"{start}transformer.resblocks."
        if key.startswith(before) and int(key.removeprefix(before).split(".")[0]) >= blocks[part]:
            return False
    return True
