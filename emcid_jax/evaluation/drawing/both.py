"""The same draws by the base and by the edited model, kept as vectors instead of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32
from tqdm import tqdm

from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.batches import drawing, edited_fingerprint
from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.draw import Classify, Draw
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.hashing import fingerprint
from emcid_jax.runtime.parallel import even_chunk


class Both(NamedTuple):
    """One model before and after its edit."""

    base: Pipeline
    edited: Pipeline
    base_hash: str
    """Identifies every part of the base model."""
    mesh: Mesh | None = None
    """Devices that share each batch."""


def vectors_of_both(
    draws: Sequence[Draw],
    embed: Classify,
    depends_on: Sequence[object],
    models: Both,
    config: EvaluationConfig,
    workdir: Path,
    benchmark: str,
    *,
    progress: bool = True,
) -> Iterator[dict[Draw, Float32[np.ndarray, " dim"]]]:
    """Vectors of the base model's images, then of the edited one's, by draw.

    What is stored already is not drawn again; one side at a time is in memory.

    Args:
        draws: the images; duplicates are drawn once.
        embed: images to what is kept of them, in half precision.
        depends_on: everything that decides vectors beside models and sampler.
        models: what draws.
        config: sampler settings and batch.
        workdir: vectors go to `evaluation/BENCHMARK-{before,after}/`, a file per batch.
        benchmark: name of the benchmark.
        progress: bars on stderr.
    """
    unique = list(dict.fromkeys(draws))
    base = fingerprint(*depends_on, models.base_hash, config.steps, config.guidance)
    changed = edited_fingerprint(base, models.base, models.edited)
    batch = even_chunk(len(unique), config.batch)
    for side, pipeline, own in (("before", models.base, base), ("after", models.edited, changed)):
        label = f"{benchmark}, {side}"
        with tqdm(total=len(unique), desc=label, unit="img", disable=not progress) as bar:
            yield scored_images(
                unique,
                drawing(pipeline, config, batch, models.mesh),
                embed,
                batch,
                workdir / "evaluation" / f"{benchmark}-{side}",
                own,
                progress=bar.update,
            )
