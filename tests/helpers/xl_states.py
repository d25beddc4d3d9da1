"""What an SDXL pipeline of diffusers reads of prompts, and the tiny one with an edit in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emcid_jax.editing.export.edit_file import EditFile

PROMPTS = ["a photo of a dog on the beach", "art"]


def load(folder: Path, **parts: Any) -> Any:
    """The pipeline in `folder`, with other parts in place of its own."""
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, **parts)


def states(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both encoders' states side by side, and the projected state of the second."""
    with torch.no_grad():
        found = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    return found[0], found[2]


def edited(folder: Path, edits: Mapping[str, EditFile]) -> Any:
    """The pipeline with every change added to the weights by hand."""
    pipe = load(folder)
    for part, edit in edits.items():
        weights = getattr(pipe, part).state_dict()
        for changed, delta in edit.changes().items():
            (name,) = [n for n in weights if n.endswith(changed.removeprefix("text_model."))]
            exact = weights[name].numpy().astype(np.float64) + delta
            weights[name].copy_(torch.from_numpy(exact))
    return pipe


def assert_same(found: Any, wanted: Any, most: float = 0.0) -> None:
    """Equal, or within `most` of the largest value."""
    for one, other in zip(states(found), states(wanted), strict=True):
        assert (one - other).abs().max() <= most * other.abs().max()


def assert_differs(found: Any, base: Any) -> None:
    """What both encoders say has moved, and what the projection says."""
    (one, pooled), (old, old_pooled) = states(found), states(base)
    width = base.text_encoder.config.hidden_size
    for new, before in (
        (one[..., :width], old[..., :width]),
        (one[..., width:], old[..., width:]),
        (pooled, old_pooled),
    ):
        assert (new - before).abs().max() > 0.01
