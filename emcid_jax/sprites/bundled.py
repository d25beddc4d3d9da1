"""Where the bundled models lie, and what is best for the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emcid_jax.config import StageOneConfig, StageTwoConfig, preset

BUNDLED, BUNDLED_XL = "sprites", "sprites-xl"
SHIPPED = {BUNDLED: "weights", BUNDLED_XL: "weights_xl"}
"""Name of a model that ships with the package -> its folder."""
IMPLICIT = Path(__file__).parent / "data" / "implicit.csv"
"""Implicit assumptions of the sprite world in TIMED's format (docs/implicit.md)."""

STAGE_ONE = StageOneConfig(learning_rate=0.5, text_loss_scale=0.1, teacher_pool=16, text_tokens=24)
"""Stage I for its states, which are larger than CLIP's, and its UNet, which is so small that the
text costs as much (docs/decisions.md)."""

ATTENTION_STAGE_ONE = preset("balanced", STAGE_ONE)
"""Stage I by the attention loss: as good by the noise loss, at a fraction of its work
(docs/decisions.md)."""

UNITS_STAGE_ONE = dataclasses.replace(
    STAGE_ONE,
    layer=0,
    objective="attention",
    steps=100,
    learning_rate=1.0,
    clamp_norm_factor=6.0,
    shorten=0.01,
)
"""Stage I for concept units (docs/concept_units.md): in block 0, by the attention loss, no offset
longer than it need be."""

UNITS_STAGE_TWO = StageTwoConfig(layers=(0,), solver="units")
"""Stage II for them."""


def model_folder(path: str) -> Path:
    """The folder that `path` names: a shipped model, or any folder."""
    return Path(__file__).parent / SHIPPED[path] if path in SHIPPED else Path(path)
