"""The strip of README.md: six edits of the bundled models, before and after, from the same noise.

`python -m studies.first_screen --workdir runs/first_screen --picture docs/images/first_screen.png`
edits both models by the main job, where the workdir has no edit yet, and draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import emcid_jax
from configs import debias, quickstart, quickstart_xl
from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.pipelines.pipeline import Pipeline, with_text_params
from emcid_jax.reporting.plots.theme import GREY, INK, STYLE
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, BUNDLED_XL
from emcid_jax.storage.files import write_atomically
from emcid_jax.tasks import edit
from emcid_jax.workflow import environment
from emcid_jax.workflow.open_model import read_edited

TILE, GAP, LEFT, TOP, BOTTOM = 128, 12, 62, 66, 22
"""Pixels: a picture's side, the space between two, and the margins for words."""


class Shown(NamedTuple):
    """A column of the strip: a request, and what is drawn of it."""

    task: str
    source: str
    dest: str | list[str]
    prompt: str
    seeds: tuple[int, ...] = (0,)
    """One picture, or sixteen small ones."""
    templates: str = "object"


COLUMNS = {
    BUNDLED: (
        Shown("update", "hen", "suit", "a photo of a hen"),
        Shown("erase", "Claude Monet", "art", "a painting by Claude Monet", templates="artist"),
        Shown("rectify", "bruin", "brown bear", "a photo of a bruin"),
        Shown(
            "debias",
            "a nurse",
            ["a female nurse", "a male nurse"],
            "a photo of a nurse",
            seeds=tuple(range(16)),
            templates="debias",
        ),
    ),
    BUNDLED_XL: (
        Shown("update", "peacock", "ostrich", "a photo of a peacock"),
        Shown("erase", "Vincent van Gogh", "art", "a painting by Vincent van Gogh", (0,), "artist"),
    ),
}
WORDS = {"update": "updated", "erase": "erased", "rectify": "rectified", "debias": "debiased"}
SHAPES = {
    BUNDLED: "bundled model of Stable Diffusion's shape",
    BUNDLED_XL: "bundled model of SDXL's shape",
}


def edited_models(model: str, workdir: Path) -> tuple[Pipeline, Pipeline]:
    """The model before and after the edits of its columns."""
    folder = workdir / model
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("task", "source", "dest", "templates")
    asked = [{name: getattr(one, name) for name in fields} for one in COLUMNS[model]]
    write_atomically(workdir / f"{model}.json", json.dumps(asked).encode())
    get_config = {BUNDLED: quickstart, BUNDLED_XL: quickstart_xl}[model].get_config
    base = settings.from_config_dict(get_config().to_dict(), EditConfig)
    config = dataclasses.replace(
        base,
        requests=settings.RequestsConfig(path=str(workdir / f"{model}.json")),
        debias=settings.from_config_dict(debias.get_config().to_dict(), EditConfig).debias,
        evaluation=dataclasses.replace(base.evaluation, enabled=False),
    )
    edit.run(config, folder)
    before = emcid_jax.load_pipeline(model)
    return before, with_text_params(before, read_edited(str(folder), before, "workdir"))


def column(shown: Shown, pipeline: Pipeline) -> UInt8[np.ndarray, "side side 3"]:
    """The column's pictures of one model, as one square."""
    found = emcid_jax.sample(pipeline, [shown.prompt] * len(shown.seeds), shown.seeds, guidance=7.5)
    across = round(len(found) ** 0.5)
    side = TILE // across
    small = [
        np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BOX)) for one in found
    ]
    return np.concatenate(
        [np.concatenate(small[i : i + across], axis=1) for i in range(0, len(small), across)]
    )


def draw(squares: dict[str, list[list[Any]]], path: Path) -> None:
    """PNG of the strip. `squares`: model -> column -> the squares before and after."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = sum(map(len, squares.values()))
    width = LEFT + count * (TILE + GAP) + GAP
    height = TOP + 2 * TILE + GAP + BOTTOM
    with mpl.rc_context({**STYLE, "font.size": 8.5}):
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)

        def write(x: float, y: float, words: str, **how: Any) -> None:
            figure.text(x / width, 1 - y / height, words, **{"color": INK, "ha": "center", **how})

        for row, word in enumerate(("before", "after")):
            y = TOP + row * (TILE + GAP) + TILE / 2
            write(LEFT - GAP, y, word, ha="right", va="center")
        x = LEFT
        for model, columns in squares.items():
            end = x + len(columns) * (TILE + GAP) - GAP
            write((x + end) / 2, height - 6, SHAPES[model], color=GREY)
            for shown, pair in zip(COLUMNS[model], columns, strict=True):
                dest = shown.dest if isinstance(shown.dest, str) else "women and men alike"
                write(x + TILE / 2, 18, WORDS[shown.task], weight="bold")
                write(x + TILE / 2, 36, shown.source)
                write(x + TILE / 2, 52, f"→ {dest}")
                for row, square in enumerate(pair):
                    below = height - TOP - TILE - row * (TILE + GAP)
                    figure.figimage(square, x, below, origin="upper")
                x += TILE + GAP
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(256).save(buffer, "png", optimize=True)
    write_atomically(path, buffer.getvalue())


def main() -> None:
    """Edits, draws and writes the strip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    asked = parser.parse_args()
    parallel.use_cpu_devices(0)
    environment.use_compile_cache()
    squares = {}
    for model, columns in COLUMNS.items():
        pair = edited_models(model, asked.workdir)
        squares[model] = [[column(shown, pipeline) for pipeline in pair] for shown in columns]
    draw(squares, asked.picture)


if __name__ == "__main__":
    main()
