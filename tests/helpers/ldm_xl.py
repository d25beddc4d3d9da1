"""The tiny Stable Diffusion XL in LDM's key names, by tables written out by hand.

They are what `ldm_keys` is held against: nothing here is computed by it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

CLIP_L, OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER_CLIP = "conditioner.embedders.0.model."

# Module of the diffusers folder -> module of the single file, longest first where one begins
# another. Levels of 1 resnet: the second level attends, on its way down and up.
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down_blocks.0.resnets.0": "encoder.down.0.block.0",
    "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
    "encoder.down_blocks.1.resnets.0": "encoder.down.1.block.0",
    "encoder.mid_block.resnets.0": "encoder.mid.block_1",
    "encoder.mid_block.attentions.0": "encoder.mid.attn_1",
    "encoder.mid_block.resnets.1": "encoder.mid.block_2",
    "encoder.conv_norm_out": "encoder.norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid_block.resnets.0": "decoder.mid.block_1",
    "decoder.mid_block.attentions.0": "decoder.mid.attn_1",
    "decoder.mid_block.resnets.1": "decoder.mid.block_2",
    "decoder.up_blocks.0.resnets.0": "decoder.up.1.block.0",
    "decoder.up_blocks.0.resnets.1": "decoder.up.1.block.1",
    "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample",
    "decoder.up_blocks.1.resnets.0": "decoder.up.0.block.0",
    "decoder.up_blocks.1.resnets.1": "decoder.up.0.block.1",
    "decoder.conv_norm_out": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def ldm_xl(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the tiny model, and what else such files hold."""
    tensors = {
        f"{CLIP_L}text_model.{name.removeprefix('text_model.')}": array
        for name, array in load_file(folder / "text_encoder/model.safetensors").items()
    }
    tensors |= open_clip(folder, OPEN_CLIP)
    weights = "diffusion_pytorch_model.safetensors"
    for name, array in load_file(folder / "unet" / weights).items():
        module, inside = _split(name, UNET)
        if ".resnets." in name:
            inside = _renamed(inside, UNET_RESNET)
        tensors[f"model.diffusion_model.{UNET[module]}{inside}"] = array
    for name, array in load_file(folder / "vae" / weights).items():
        module, inside = _split(name, VAE)
        if ".attentions." in name:
            inside = _renamed(inside, VAE_ATTENTION)
            array = array[:, :, None, None] if array.ndim == 2 else array
        inside = inside.replace("conv_shortcut", "nin_shortcut")
        tensors[f"first_stage_model.{VAE[module]}{inside}"] = array
    return tensors | {
        f"{CLIP_L}text_model.embeddings.position_ids": np.arange(32)[None],
        f"{OPEN_CLIP}logit_scale": np.float32([4.6]),
        "denoiser.sigmas": np.ones(5, np.float32),
    }


def open_clip(folder: Path, start: str) -> dict[str, np.ndarray]:
    """The second text encoder in OpenCLIP's names, each behind `start`."""
    named = load_file(folder / "text_encoder_2/model.safetensors")
    embeddings = "text_model.embeddings."
    found = {
        "token_embedding.weight": named[f"{embeddings}token_embedding.weight"],
        "positional_embedding": named[f"{embeddings}position_embedding.weight"],
        "ln_final.weight": named["text_model.final_layer_norm.weight"],
        "ln_final.bias": named["text_model.final_layer_norm.bias"],
        "text_projection": np.ascontiguousarray(named["text_projection.weight"].T),
    }
    for block in range(sum(name.endswith(".mlp.fc2.bias") for name in named)):
        theirs, ours = f"transformer.resblocks.{block}.", f"text_model.encoder.layers.{block}."
        for leaf in ("weight", "bias"):
            for here, there in OPEN_CLIP_BLOCK.items():
                found[f"{theirs}{there}.{leaf}"] = named[f"{ours}{here}.{leaf}"]
            parts = [named[f"{ours}self_attn.{kind}_proj.{leaf}"] for kind in "qkv"]
            found[f"{theirs}attn.in_proj_{leaf}"] = np.concatenate(parts)
    assert sum(array.size for array in found.values()) == sum(a.size for a in named.values())
    return {start + name: array for name, array in found.items()}


def _split(name: str, table: dict[str, str]) -> tuple[str, str]:
    (module,) = [module for module in table if name.startswith(f"{module}.")]
    return module, name.removeprefix(module)


def _renamed(inside: str, table: dict[str, str]) -> str:
    layer, leaf = inside[1:].rsplit(".", 1)
    return f".{table[layer]}.{leaf}"
