"""Where the bundled model lies."""

from __future__ import annotations

from pathlib import Path

BUNDLED = "sprites"


def model_folder(path: str) -> Path:
    """The folder that `path` names; `sprites` is the model that ships with the package."""
    return Path(__file__).parent / "weights" if path == BUNDLED else Path(path)
