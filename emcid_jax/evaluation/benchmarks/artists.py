"""Erased artists without a classifier of styles: CLIP scores and LPIPS (docs/evaluation.md).

For real models. Prompts about erased artists should fit their pictures less than before, and look
different; prompts about others should do neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.readers.located import Table, number_in, parse
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.drawing.both import Both, read_by_both
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.judges.clip import Clip
from emcid_jax.evaluation.judges.lpips import Lpips64, perceptual_change
from emcid_jax.evaluation.statistics.clip_score import artist_scores, clip_scores
from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.runtime.parallel import even_chunk
from emcid_jax.storage.hashing import fingerprint
from emcid_jax.storage.text_files import read_text

FORMAT = 1
"""Raised whenever stored vectors would come out differently from the same inputs."""
COLUMNS = ("prompt", "evaluation_seed", "artist", "type")

Draws = Mapping[str, Sequence[Draw]]
"""Artist -> images."""


class ArtistDraws(NamedTuple):
    """Everything the benchmark draws."""

    erased: Draws
    kept: Draws
    """Artists of type `holdout`; as in the released code those of type `preserved` are left out."""


def read_artists(path: Path) -> ArtistDraws:
    """The prompts and seeds of a published `erased-*.csv`. UserError tells all that is wrong."""
    failures = Failures(path)
    table = parse(read_text(path, "artists"), failures)
    found: dict[str, dict[str, list[Draw]]] = {"erased": {}, "holdout": {}}
    if not isinstance(table, Table) or not set(COLUMNS) <= set(table.columns):
        problem = Problem("file", "is no table of artists", path.name, f"columns {COLUMNS}")
        failures.add(1, problem)
    else:
        for row in table.rows:
            seed = number_in(row, "evaluation_seed", row.line, failures)
            if row["type"] in found:
                draws = found[row["type"]].setdefault(row["artist"], [])
                draws.append(Draw(row["prompt"].strip(), seed))
        for kind, artists in found.items():
            if not artists and not failures:
                fix = "give rows of type erased and of type holdout"
                failures.add(table.line, Problem("type", "has no row", kind, fix))
    failures.finish()
    return ArtistDraws(found["erased"], found["holdout"])


def evaluate(
    artists: ArtistDraws,
    models: Both,
    clip: Clip,
    lpips: Lpips64 | None,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Draws with both models and scores; JSON values only.

    Returns:
        `clip`: CLIP_e, CLIP_s and H_a of the base (`before`) and the edited model (`after`), with
        intervals over artists; `lpips`: LPIPS_e, LPIPS_u and their difference, None without
        `lpips`; `artists`: how many are erased and kept.
    """
    draws = [one for part in artists for rows in part.values() for one in rows]
    dim, batch = clip.images.dim, even_chunk(len(set(draws)), config.batch)

    def embed(images: np.ndarray) -> np.ndarray:
        """The CLIP vector, and the small picture that LPIPS sees: bytes are exact in float16."""
        vectors = clip.images(images, batch=batch)
        if lpips is None:
            return vectors
        small = lpips.small(images).reshape(len(images), -1)
        return np.concatenate([vectors, small.astype(np.float32)], 1)

    kept = (FORMAT, clip.images.fingerprint, lpips is not None)
    decides = fingerprint(*kept, models.base_hash, config.steps, config.guidance)
    sides = list(
        read_by_both(draws, embed, decides, models, config, workdir, "artists", progress=progress)
    )
    texts = dict(zip(draws, clip.embed_texts([one.prompt for one in draws]), strict=True))

    def means(values: Mapping[Draw, float], part: Draws) -> Float[np.ndarray, " artist"]:
        return np.array([np.mean([values[one] for one in rows]) for rows in part.values()])

    found: dict[str, Any] = {"clip": {}, "lpips": None}
    unique = list(texts)
    for name, side in zip(("before", "after"), sides, strict=True):
        scores = clip_scores(
            np.stack([side[one][:dim] for one in unique]), np.stack([texts[o] for o in unique])
        )
        by_draw = dict(zip(unique, scores.tolist(), strict=True))
        result = artist_scores(*(means(by_draw, part) for part in artists))
        found["clip"][name] = {key: one._asdict() for key, one in result._asdict().items()}
    if lpips is not None:
        small = [np.stack([side[one][dim:] for one in unique]) for side in sides]
        by_draw = dict(zip(unique, lpips(*small).tolist(), strict=True))
        change = perceptual_change(*(means(by_draw, part) for part in artists))
        found["lpips"] = {key: one._asdict() for key, one in change._asdict().items()}
    return found | {"artists": {name: len(part) for name, part in artists._asdict().items()}}
