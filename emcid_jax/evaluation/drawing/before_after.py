"""The same prompts and seeds drawn by the clean and by the edited model, read in label groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from emcid_jax.concepts.templates import fill
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.batches import judging
from emcid_jax.evaluation.drawing.both import SIDES, Both, read_by_both
from emcid_jax.evaluation.drawing.draw import Draw, drawn_seeds
from emcid_jax.evaluation.drawing.kept_pictures import picture_files, slug
from emcid_jax.evaluation.judges.classifier import Judge
from emcid_jax.runtime.parallel import even_chunk
from emcid_jax.storage.hashing import fingerprint

FORMAT = 1
"""Raised whenever stored probabilities would come out differently from the same inputs."""

Reading = Mapping[str, Float[np.ndarray, " label"]]
"""Probabilities of one image by label group."""


class Readings(NamedTuple):
    """What the judge reads in every draw."""

    before: Mapping[Draw, Reading]
    """Clean model."""
    after: Mapping[Draw, Reading]
    """Edited model."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Models(Both):
    """What draws and what reads: one model before and after its edit, and the judge."""

    judge: Judge


def draws_of(
    name: str, templates: Sequence[str], seeds: Sequence[int] = (), seed: int = 0
) -> tuple[Draw, ...]:
    """One draw per template, about `name`; seeds that are missing follow from name and `seed`."""
    drawn = [*seeds, *drawn_seeds(name, seed, len(templates))[len(seeds) :]]
    prompts = [fill(template, name).prompt for template in templates]
    return tuple(Draw(*pair) for pair in zip(prompts, drawn, strict=False))


def read_both(
    draws: Sequence[Draw],
    groups: Sequence[str],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    benchmark: str,
    *,
    shown: Sequence[Draw] = (),
    pictures: Mapping[str, Mapping[Draw, Path]] | None = None,
    batch: int = 0,
    progress: bool = True,
) -> Readings:
    """Draws what is not stored yet, with both models, and gives what the judge reads in it.

    Args:
        draws: the images; duplicates are drawn once.
        groups: label groups of the judge that are read.
        models: what draws and reads.
        config: sampler settings and batch.
        workdir: probabilities go to `evaluation/BENCHMARK-{before,after}/`.
        benchmark: name of the benchmark.
        shown: draws whose pictures are kept, in `images/BENCHMARK/{before,after}/`.
        pictures: instead of `shown`, files of the pictures kept `before` and `after`; a folder
            holds pictures of one model alone.
        batch: images drawn together, whatever their number; 0: equal batches.
        progress: bars on stderr.
    """
    unique = list(dict.fromkeys(draws))
    sizes = [len(models.judge.groups[group].labels) for group in groups]
    batch = batch or even_chunk(len(unique), config.batch)
    if pictures is None:
        names = {draw: f"{i + 1:04d}-{slug(draw.prompt)}" for i, draw in enumerate(shown)}
        root = workdir / "images" / benchmark
        pictures = {side: picture_files(root / side, names) for side in SIDES}
    sides = read_by_both(
        unique,
        judging(models.judge, groups, batch),
        fingerprint(
            FORMAT,
            models.base_hash,
            models.judge.fingerprint,
            config.steps,
            config.guidance,
            *groups,
        ),
        models,
        config,
        workdir,
        benchmark,
        pictures=pictures,
        batch=batch,
        progress=progress,
    )
    return Readings(*({one: by_group(of[one], groups, sizes) for one in unique} for of in sides))


def label_means(
    readings: Readings, rows: Sequence[tuple[Sequence[Draw], int]], group: str
) -> list[Float[np.ndarray, " row"]]:
    """Means over each row's draws, clean and edited model: the label's probability, then its share.

    A row is draws and a label of `group`; its share is how often that is the most probable one.
    """
    return [
        np.array([of(side, draws, group, label).mean() for draws, label in rows], np.float64)
        for of in (probability, is_top)
        for side in readings
    ]


def probability(
    readings: Mapping[Draw, Reading], draws: Sequence[Draw], group: str, label: int
) -> Float[np.ndarray, " draw"]:
    """The label's probability in every draw."""
    return np.array([readings[draw][group][label] for draw in draws], np.float64)


def is_top(
    readings: Mapping[Draw, Reading], draws: Sequence[Draw], group: str, label: int
) -> Bool[np.ndarray, " draw"]:
    """Whether the label is the group's most probable one, draw by draw."""
    return np.array([int(np.argmax(readings[draw][group])) == label for draw in draws], bool)


def by_group(scores: np.ndarray, groups: Sequence[str], sizes: Sequence[int]) -> Reading:
    """What the judge read in one image, taken apart; `sizes` are the groups' numbers of labels."""
    parts = np.split(scores, np.cumsum(sizes)[:-1])
    return dict(zip(groups, parts, strict=True))
