"""Do figures from text space rank what images show? Rank correlations over one edit.

    python -m studies.text_space --requests arbitrary_val.csv --workdir runs/solvers

AICE's first 300 requests on the bundled model, with Stage II's defaults; memories, moments and
judgements are those of `studies.solver_images` if the workdir holds them, made there if not.
Requests: how far targets were reached against how images changed, one image per prompt set.
Hold-out classes: drift, predicted from keys and measured, against damage over three images each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from emcid_jax.config import StageTwoConfig
from emcid_jax.evaluation.benchmarks.aice.protocol import (
    AiceResult,
    Scores,
    score_plan,
)
from emcid_jax.evaluation.drawing.draw import Named
from emcid_jax.evaluation.text_space import measure as text_space
from emcid_jax.evaluation.text_space.measure import TextSpace
from studies import aice_images

LEAST = 1e-4
"""Probabilities below it are rounding: judgements are kept as float16."""


class Correlation(NamedTuple):
    """How alike a text quantity and an image quantity rank the same things."""

    over: str
    text: str
    image: str
    rho: float
    p: float
    count: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    options = _parse(arguments)
    aice_images.start()
    run = aice_images.prepare(options.requests, options.count, options.workdir)
    config = StageTwoConfig()
    solved = aice_images.solve(run, config)
    before, after = aice_images.scores(run, None), aice_images.scores(run, solved)
    found = text_space.measure(
        run.concepts,
        run.job.pipeline.encoder,
        run.job.sites,
        solved,
        run.moments,
        config,
        [one.name for one in run.plan.holdout],
        run.job.captions[:2000],
    )
    rows = over_requests(found, score_plan(run.plan, before, after))
    rows += over_holdout(found, run.plan.holdout, before, after)
    print(f"{'over':10}{'text space':36}{'image space':24}{'rho':>8}{'p':>10}{'n':>6}")
    for row in rows:
        print(f"{row.over:10}{row.text:36}{row.image:24}{row.rho:8.3f}{row.p:10.1e}{row.count:6d}")
    if options.output:
        records = [row._asdict() for row in rows]
        options.output.write_text(json.dumps(records, indent=2) + "\n")
    return 0


def over_requests(found: TextSpace, result: AiceResult) -> list[Correlation]:
    """Spearman's rank correlation of every pair of quantities of the requests."""
    reached = {one.source: one for one in found.reached}
    unmet = dict(found.prediction.unmet)
    records = [record for record in result.records if record.general is not None]
    text = {
        "left of the target": [reached[r.source].left for r in records],
        "left, other prompts": [reached[r.source].elsewhere for r in records],
        "1 - cosine": [1 - reached[r.source].cosine for r in records],
        "left to destination's features": [reached[r.source].gap for r in records],
        "predicted share missed": [unmet[r.source] for r in records],
    }
    image = {
        "destination gained": [r.general["post_source_dest"] - r.general["pre_source_dest"]
                               for r in records if r.general],
        "source lost": [r.general["pre_source"] - r.general["post_source"]
                        for r in records if r.general],
    }  # fmt: skip
    return _pairs("requests", text, image)


def over_holdout(
    found: TextSpace, holdout: Sequence[Named], before: Scores, after: Scores
) -> list[Correlation]:
    """The same of hold-out classes: how much right class and its margin lose, mean over images."""
    kept = {one.name: one for one in found.kept}
    held = [one for one in holdout if one.name in kept]
    text = {
        "predicted drift": [kept[one.name].predicted for one in held],
        "cosine to nearest edit": [kept[one.name].similarity for one in held],
        "drift at block L": [kept[one.name].drift for one in held],
        "drift of final features": [kept[one.name].features for one in held],
    }
    lost = [
        [
            (
                float(before[draw][one.label] - after[draw][one.label]),
                margin(before[draw], one.label) - margin(after[draw], one.label),
            )
            for draw in one.draws
        ]
        for one in held
    ]
    chance, margins = np.array(lost).mean(1).T.tolist()
    return _pairs("hold-out", text, {"right class lost": chance, "its margin lost": margins})


def margin(probabilities: np.ndarray, right: int) -> float:
    """log of the right class's probability over the best other one's."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), LEAST))
    return float(logs[right] - np.delete(logs, right).max())


def _pairs(over: str, text: dict[str, list[Any]], image: dict[str, list[Any]]) -> list[Correlation]:
    rows = []
    for name, values in text.items():
        for shown, seen in image.items():
            both = np.array([values, seen], np.float64)
            both = both[:, np.isfinite(both).all(0)]
            found: Any = stats.spearmanr(*both)
            rho, p = float(found.statistic), float(found.pvalue)
            rows.append(Correlation(over, name, shown, rho, p, both.shape[1]))
    return rows


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.text_space", description=__doc__)
    parser.add_argument("--requests", required=True, help="AICE's arbitrary_val.csv")
    parser.add_argument("--workdir", type=Path, required=True, help="memories, moments, judgements")
    parser.add_argument("--count", type=int, default=300, help="the first so many requests")
    parser.add_argument("--output", type=Path, help="JSON file for the correlations")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
