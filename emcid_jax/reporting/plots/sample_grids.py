"""PNG files that say how they were drawn, and labelled grids of them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from emcid_jax.evaluation.drawing.png import remove_own, with_note
from emcid_jax.runtime.terminal import printable
from emcid_jax.storage.files import write_atomically

CELL = 256
"""Largest side of a picture in a grid, in pixels."""
LABEL = 220
"""Width of the column with the prompts."""
HEADER = 40
ROWS = 16
"""Prompts per grid; more make further grids."""


def png(image: UInt8[np.ndarray, "height width 3"], note: str) -> bytes:
    """The image as a PNG file's bytes, with `note` inside."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=with_note(note))
    return buffer.getvalue()


def write_grids(
    folder: Path,
    files: Mapping[tuple[str, str, int], Path],
    prompts: Sequence[str],
    seeds: Sequence[int],
    models: Sequence[str],
) -> list[str]:
    """Writes `grid-1.png`, ...: a row per prompt, a column per seed and model, side by side.

    Args:
        folder: gets the grids; those of an earlier run are replaced.
        files: picture of each (model, prompt, seed).
        prompts: rows, `ROWS` per grid.
        seeds: groups of columns.
        models: columns within a group; named in the header if there are several.

    Returns:
        The names of the files.
    """
    remove_own(folder, "grid-*.png")
    names = []
    for start in range(0, len(prompts), ROWS):
        name = f"grid-{start // ROWS + 1}.png"
        grid = _grid(files, prompts[start : start + ROWS], seeds, models)
        buffer = io.BytesIO()
        grid.save(buffer, "PNG", pnginfo=with_note())
        write_atomically(folder / name, buffer.getvalue())
        names.append(name)
    return names


def _grid(
    files: Mapping[tuple[str, str, int], Path],
    prompts: Sequence[str],
    seeds: Sequence[int],
    models: Sequence[str],
) -> Image.Image:
    columns = [(model, seed) for seed in seeds for model in models]
    # matplotlib brings a font that knows more letters than Pillow's own.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 14)
    width, height = LABEL + len(columns) * (CELL + 4), HEADER + len(prompts) * (CELL + 4)
    grid = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(grid)
    for i, (model, seed) in enumerate(columns):
        text = f"seed {seed}" if len(models) == 1 else f"{model}, seed {seed}"
        pen.text((LABEL + i * (CELL + 4), 12), printable(text), "black", font)
    for row, prompt in enumerate(prompts):
        top = HEADER + row * (CELL + 4)
        lines = textwrap.wrap(printable(prompt), 24, max_lines=14, placeholder=" ...")
        lines = lines or ["(no words)"]
        pen.multiline_text((8, top), "\n".join(lines), "black", font)
        for i, (model, seed) in enumerate(columns):
            with Image.open(files[model, prompt, seed]) as picture:
                grid.paste(_fitted(picture), (LABEL + i * (CELL + 4), top))
    return grid


def _fitted(picture: Image.Image) -> Image.Image:
    """Within a cell: large pictures are averaged down, small ones enlarged pixel by pixel."""
    scale = CELL / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
