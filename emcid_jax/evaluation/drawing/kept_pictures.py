"""Pictures that an evaluation leaves for people: where they lie and whose they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.drawing.png import remove_own
from emcid_jax.storage.files import write_atomically


def picture_files(folder: Path, names: Mapping[Draw, str]) -> dict[Draw, Path]:
    """Where the named pictures go."""
    return {draw: folder / f"{name}.png" for draw, name in names.items()}


def slug(text: str) -> str:
    """Part of a file name: ASCII letters, digits and dashes only, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40].strip("-")


def claim(folder: Path, depends_on: str) -> None:
    """Remove pictures that other settings left here; they would pass for this run's."""
    marker = folder / ".fingerprint"
    if marker.exists() and marker.read_text() == depends_on:
        return
    remove_own(folder, "*.png")
    write_atomically(marker, depends_on.encode())
