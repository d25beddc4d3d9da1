"""The same prompts and seeds drawn by the base and by the edited model, and read as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.batches import drawing, edited_fingerprint
from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.draw import Classify, Draw
from emcid_jax.evaluation.drawing.kept_pictures import claim
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.parallel import even_chunk

SIDES = ("before", "after")


@dataclasses.dataclass(frozen=True, eq=False)
class Both:
    """One model before and after its edit."""

    base: Pipeline
    edited: Pipeline
    """The same model, of which one part (or more) is another tree of parameters."""
    base_hash: str
    """Identifies every part of the base model."""
    mesh: Mesh | None = None
    """Devices that share each batch."""


def read_by_both(
    draws: Sequence[Draw],
    read: Classify,
    depends_on: str,
    models: Both,
    config: EvaluationConfig,
    workdir: Path,
    benchmark: str,
    *,
    pictures: Mapping[str, Mapping[Draw, Path]] | None = None,
    batch: int = 0,
    progress: bool = True,
) -> Iterator[dict[Draw, Float[np.ndarray, " value"]]]:
    """What is read in the base model's images, then in the edited one's, by draw.

    What is stored already is not drawn again; one side at a time is in memory.

    Args:
        draws: the images; duplicates are drawn once.
        read: images to what is kept of them, in half precision.
        depends_on: hash of everything that decides what is read in the base model's images.
        models: what draws.
        config: sampler settings and batch.
        workdir: readings go to `evaluation/BENCHMARK-{before,after}/`, a file per batch; those of
            AICE, which has no name here, to `evaluation/{before,after}/`.
        benchmark: name of the benchmark.
        pictures: files of the pictures kept `before` and `after`; a folder holds pictures of one
            model alone.
        batch: images drawn together, whatever their number; 0: equal batches.
        progress: bars on stderr.
    """
    unique = list(dict.fromkeys(draws))
    batch = batch or even_chunk(len(unique), config.batch)
    changed = edited_fingerprint(depends_on, models.base, models.edited)
    of_side = ((models.base, depends_on), (models.edited, changed))
    for side, (pipeline, own) in zip(SIDES, of_side, strict=True):
        keep = pictures[side] if pictures else {}
        for folder in {path.parent for path in keep.values()}:
            claim(folder, own)
        name = f"{benchmark}-{side}" if benchmark else side
        with tqdm(total=len(unique), desc=name, unit="img", disable=not progress) as bar:
            yield scored_images(
                unique,
                drawing(pipeline, config, batch, models.mesh),
                read,
                batch,
                workdir / "evaluation" / name,
                own,
                keep=keep,
                progress=bar.update,
            )
