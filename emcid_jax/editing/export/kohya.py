"""kohya's names of the edited weights, and what tools are told of the model that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.editing.export.edit_file import Edits
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.storage import ownership

_LISTED = 10
"""Requests that a description names."""


class Family(NamedTuple):
    """A published family, as the tools that read LoRAs know it."""

    widths: tuple[int, ...]
    """Of its text encoders."""
    mark: str
    """A weight that is given a pair of zeros: InvokeAI reads the family off one of attention."""
    shape: tuple[int, int]
    """Of that weight."""
    about: Mapping[str, str]
    """Metadata."""


def _modelspec(architecture: str, side: int) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{side}x{side}",
    }


_TEXT_MARK = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
# Of two text encoders InvokeAI adds up no pairs, and takes the first one's for those of FLUX.
_UNET_MARK = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
# Of Stable Diffusion 2 there are two kinds, which an edit does not tell apart: no modelspec.
_FAMILIES = (
    Family(
        (768,),
        _TEXT_MARK,
        (768, 768),
        {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
        | _modelspec("stable-diffusion-v1", 512),
    ),
    Family(
        (1024,),
        _TEXT_MARK,
        (1024, 1024),
        {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    ),
    Family(
        (768, 1280),
        _UNET_MARK,
        (640, 2048),
        {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
        | _modelspec("stable-diffusion-xl-v1-base", 1024),
    ),
)


def name(part: str, module: str, edits: Edits) -> str:
    """The name of a text encoder's module, e.g. `text_model.encoder.layers.0.mlp.fc2`: SDXL's
    encoders are numbered."""
    number = {FIRST: "1", SECOND: "2"}[part] if len(edits) > 1 else ""
    return f"lora_te{number}_{module.replace('.', '_')}"


def pair(key: str, up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one weight in a LoRA. Loaders scale by alpha / rank, which is 1."""
    return {
        f"{key}.lora_up.weight": up,
        f"{key}.lora_down.weight": down,
        f"{key}.alpha": np.array(len(down), up.dtype),
    }


def family(edits: Edits) -> Family | None:
    """The published family of a model with such text encoders, if there is one."""
    for one in _FAMILIES:
        if len(one.widths) == len(edits) and all(
            edit.dim in (None, width)
            for width, edit in zip(one.widths, edits.values(), strict=True)
        ):
            return one
    return None


def mark(found: Family | None, rank: int, dtype: str) -> dict[str, np.ndarray]:
    """Zeros that tell InvokeAI the family; they change no weight."""
    if found is None:
        return {}
    rows, columns = found.shape
    return pair(found.mark, np.zeros((rows, rank), dtype), np.zeros((rank, columns), dtype))


def metadata(kind: str, found: Family | None, ledger: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file: ours, kohya's and modelspec's.

    Args:
        kind: which export it is, for `ownership.SIGNATURE`.
        found: see `family`.
        ledger: the edit's.
    """
    requests = [f"{one['source']} -> {' | '.join(one['dest'])}" for one in ledger["requests"]]
    rest = len(requests) - _LISTED
    more = [f"and {rest} more"] if rest > 0 else []
    count = f"{len(requests)} concepts" if len(requests) != 1 else "one concept"
    return {
        "format": "pt",
        ownership.SIGNATURE: kind,
        "modelspec.title": f"EMCID: {requests[0]}" if len(requests) == 1 else f"EMCID: {count}",
        "modelspec.description": (
            f"Changes what the text encoder makes of {count}: "
            f"{'; '.join(requests[:_LISTED] + more)}."
        ),
        "modelspec.usage_hint": "Strength 1; no trigger words.",
        "modelspec.tags": "concept-editing, emcid",
        **(found.about if found else {}),
    }
