"""General quality of an edited model: what captions look like that have nothing to do with it.

Base and edited model draw the same captions from the same seeds. *CLIP score* says how well images
fit their captions; *FID* compares all images of one model with the other's, and with real pictures
where there are some (docs/evaluation.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from emcid_jax.config import CountOrZero, EvaluationConfig, Seed
from emcid_jax.evaluation.benchmarks.quality_captions import (
    QualityCaption,
    captions_in_file,
    sprite_captions,
    unrelated,
)
from emcid_jax.evaluation.drawing.both import Both, read_by_both
from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.judges.classifier import Judge
from emcid_jax.evaluation.judges.clip import Clip, find_clip
from emcid_jax.evaluation.judges.features import Embedder, inception_features, judge_features
from emcid_jax.evaluation.statistics.bootstrap import paired_means
from emcid_jax.evaluation.statistics.clip_score import clip_scores
from emcid_jax.evaluation.statistics.fid import FeatureMoments, feature_moments, frechet_distance
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import even_chunk
from emcid_jax.storage.hashing import fingerprint

__all__ = [
    "Evaluators",
    "QualityCaption",
    "QualityConfig",
    "evaluate",
    "load_evaluators",
    "read_captions",
]

FORMAT = 1
"""Raised whenever stored vectors would come out differently from the same inputs."""
SPRITES = "sprites"


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Which captions are drawn, and what judges them."""

    captions: str = SPRITES
    """`sprites` (captions of the sprite world, none of them trained on), or a CSV with the columns
    `prompt`, `evaluation_seed` and, for real pictures, `coco_id`."""
    count: CountOrZero = 1000
    """How many captions, of a file the first ones; 0 takes all of a file."""
    seed: Seed = 5_000_000
    """`sprites`: decides captions, image seeds and the real pictures."""
    real_images: str = ""
    """Folder of a file's real pictures, named by `coco_id`; empty: FID against the base only. The
    sprite world's own are drawn."""
    clip: str = ""
    """Folder of a CLIP model in transformers' format; empty: the model's own `image_tower`."""
    inception: str = ""
    """FID's InceptionV3 as a .safetensors file; empty: FID compares the judge's features."""

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if self.captions == SPRITES and not self.count:
            raise UserError("config.quality.count is 0; say how many captions of `sprites`")
        if self.captions == SPRITES and self.real_images:
            raise UserError(
                f"config.quality.real_images is {self.real_images!r}, but those of `sprites` are "
                "drawn; leave it empty or name a CSV in config.quality.captions"
            )


class Evaluators(NamedTuple):
    """What turns images into figures."""

    clip: Clip
    features: Embedder
    """Whose vectors FID compares."""


def load_evaluators(config: QualityConfig, pipeline: Pipeline, judge: Judge | None) -> Evaluators:
    """The evaluators that `config` names, by default those in the model's folder.

    Raises `UserError` if a folder or file is missing or unusable, or FID has no features: neither
    `inception` nor a judge.
    """
    if judge is None and not config.inception:
        raise UserError(
            "config.quality.inception is empty, and the model has no judge; give FID's InceptionV3 "
            "as a .safetensors file"
        )
    clip = find_clip(config.clip, pipeline.folder, "config.quality.clip")
    if config.inception:
        return Evaluators(clip, inception_features(Path(config.inception)))
    assert judge is not None
    return Evaluators(clip, judge_features(judge))


def read_captions(config: QualityConfig, edited: Sequence[str] = ()) -> list[QualityCaption]:
    """The captions that `config` names, less those that name one of `edited`.

    Raises `UserError` if they cannot be read, or if all of them do.
    """
    if config.captions == SPRITES:
        every = sprite_captions(config.count, config.seed)
    else:
        real = Path(config.real_images) if config.real_images else None
        every = captions_in_file(Path(config.captions), config.count, real)
    kept = unrelated(every, edited)
    if len(kept) < 2:
        raise UserError(
            f"config.quality.captions: {len(kept)} of {len(every)} captions name no edited "
            "concept; raise config.quality.count"
        )
    return kept


def evaluate(
    captions: Sequence[QualityCaption],
    models: Both,
    evaluators: Evaluators,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Draws with both models what is not stored yet, and compares; JSON values only.

    Args:
        captions: at least two.
        models: what draws.
        evaluators: what reads.
        config: sampler settings and batch.
        workdir: vectors go to `evaluation/quality-{before,after,real}/`, a file per batch; images
            are dropped. In memory: all vectors of one side at a time.
        progress: bars on stderr.

    Returns:
        `clip_score`: 100 cos of image and caption, of the base (`before`) and the edited model
        (`after`), and the paired difference (`change`), each with `value`, `low`, `high` (captions
        are resampled); `fid`: `change` of edited against base, and `before`, `after` of each
        against real pictures, None without them; `captions`, `real` and `features`: how many, and
        what FID compared.
    """
    clip, features = evaluators
    draws = [Draw(caption.prompt, caption.seed) for caption in captions]
    texts = clip.embed_texts([caption.prompt for caption in captions])
    batch = even_chunk(len(set(draws)), config.batch)

    def embed(images: np.ndarray) -> np.ndarray:
        """What is stored of an image: its CLIP vector, then its features."""
        return np.concatenate([net(images, batch=batch) for net in (clip.images, features)], 1)

    scores, moments = [], []
    kept = (FORMAT, clip.images.fingerprint, features.fingerprint)
    for found in read_by_both(
        draws,
        embed,
        fingerprint(*kept, models.base_hash, config.steps, config.guidance),
        models,
        config,
        workdir,
        "quality",
        progress=progress,
    ):
        vectors = np.stack([found[draw][: clip.images.dim] for draw in draws])
        scores.append(clip_scores(vectors, texts))
        # Captions that are drawn twice from one seed are one image.
        moments.append(feature_moments(np.stack([v[clip.images.dim :] for v in found.values()])))

    before, after, change = paired_means(*scores)
    real = _real_moments(captions, features, batch, workdir, progress=progress)
    return {
        "clip_score": {
            "before": before._asdict(),
            "after": after._asdict(),
            "change": change._asdict(),
        },
        "fid": {
            "change": frechet_distance(*moments),
            "before": frechet_distance(moments[0], real) if real else None,
            "after": frechet_distance(moments[1], real) if real else None,
        },
        "captions": len(captions),
        "real": real.count if real else 0,
        "features": {"name": features.name, "dim": features.dim},
    }


def _real_moments(
    captions: Sequence[QualityCaption],
    features: Embedder,
    batch: int,
    workdir: Path,
    *,
    progress: bool,
) -> FeatureMoments | None:
    """Moments of the real pictures' features; None for fewer than two pictures."""
    pictures = {one.real.name: one.real for one in captions if one.real is not None}
    if len(pictures) < 2:
        return None

    def embed(chunk: np.ndarray) -> Float32[np.ndarray, "image dim"]:
        return features([pictures[name].read() for name in chunk], batch=batch)

    with tqdm(total=len(pictures), desc="quality, real", unit="img", disable=not progress) as bar:
        found = scored_images(
            [Draw(name, 0) for name in pictures],
            lambda names, _: np.array(names, object),
            embed,
            batch,
            workdir / "evaluation" / "quality-real",
            fingerprint(FORMAT, features.fingerprint),
            progress=bar.update,
        )
    return feature_moments(np.stack(list(found.values())))
