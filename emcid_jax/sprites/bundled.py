"""Where the bundled model lies, and what is best for it."""

from __future__ import annotations

from pathlib import Path

from emcid_jax.config import StageOneConfig

BUNDLED = "sprites"
IMPLICIT = Path(__file__).parent / "data" / "implicit.csv"
"""Implicit assumptions of the sprite world in TIMED's format (docs/implicit.md)."""

STAGE_ONE = StageOneConfig(learning_rate=0.5, text_loss_scale=0.1, teacher_pool=16, text_tokens=24)
"""Stage I for its states, which are larger than CLIP's, and its UNet, which is so small that the
text costs as much (docs/decisions.md)."""


def model_folder(path: str) -> Path:
    """The folder that `path` names; `sprites` is the model that ships with the package."""
    return Path(__file__).parent / "weights" if path == BUNDLED else Path(path)
