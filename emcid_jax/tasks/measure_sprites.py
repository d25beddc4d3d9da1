"""Task `measure_sprites`: scores a sprite model on unseen prompts and seeds, and draws a sheet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.terminal import show
from emcid_jax.sprites.bundled import model_folder
from emcid_jax.sprites.drawing import contact_sheet
from emcid_jax.sprites.measure import measure, probes
from emcid_jax.storage.files import replacing
from emcid_jax.workflow import workdir as folders


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """Settings of this task."""

    task: str = "measure_sprites"
    """Which task of main runs."""
    model: str = "sprites"
    """`sprites` (the bundled model) or a folder that `train_sprites` wrote."""
    sentences: str = ""
    """The benchmark's `imgnet_prompts.json`; empty leaves the free-form measurement out."""
    per_kind: int = 500
    """Images of each kind."""
    steps: int = 20
    """Sampler steps."""
    guidance: float = 4.0
    """Classifier-free guidance."""
    seed: int = 900_000
    """First image seed; prompts are chosen by it too."""
    batch: int = 50
    """Images drawn together."""


Config = MeasureConfig
WRITES = ("scores.json", "sheet.png")
"""What the task writes in its workdir."""
LOOK = "sheet.png"
"""Which of it to open first."""


def run(config: MeasureConfig, workdir: Path) -> None:
    """Writes `scores.json` and `sheet.png` to `workdir` and prints the scores."""
    folders.require_writable(workdir, WRITES, config)
    found = probes(
        Path(config.sentences) if config.sentences else None, config.per_kind, config.seed
    )
    folder = model_folder(config.model)
    pipeline, judge = load_pipeline(folder), load_judge(folder / "judge")

    def draw(prompts, seeds):
        return generate(
            pipeline,
            prompts,
            seeds,
            steps=config.steps,
            guidance=config.guidance,
            batch=config.batch,
        )

    with folders.exclusive(workdir, WRITES):
        prompts = [prompt for probe in found for prompt in probe.prompts[:10]]
        sheet = draw(prompts, list(range(config.seed, config.seed + len(prompts))))
        with replacing(workdir / "sheet.png") as temporary:
            contact_sheet(np.asarray(sheet), 10, scale=2).save(temporary, "PNG")
        scores = measure(found, draw, judge.classify, config.seed)
        folders.write_json(workdir / "scores.json", scores)
    for name, score in scores.items():
        show(f"{name:35s} {score['accuracy']:.3f} of {score['images']}")
