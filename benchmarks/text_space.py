"""Do figures from text space rank what images show? Rank correlations over a finished run.

    python -m benchmarks.text_space --config=configs/ablate.py --workdir=runs/ablation \
        --config.base.requests.path=arbitrary_val.csv

takes the settings that an `edit` or `ablate` run was made with (of the latter its largest count
and the base variant) and reads its memories, moments and judgements; nothing is drawn or written
there. Requests: how far targets were reached against how images changed. Hold-out classes: drift,
predicted from keys and measured, against the loss of the right class's probability.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from scipy import stats

from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.editing import bank, concept_bank, second_moment
from emcid_jax.errors import UserError
from emcid_jax.evaluation import text_space
from emcid_jax.evaluation.aice import AiceResult, Scores, score_plan
from emcid_jax.evaluation.evaluate import make_plan
from emcid_jax.evaluation.images import Draw, scored_images
from emcid_jax.evaluation.labels import OBJECT
from emcid_jax.evaluation.text_space import TextSpace
from emcid_jax.tasks import edit
from emcid_jax.tasks.ablate import AblateConfig

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The finished run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the correlations; empty: none.")


class Correlation(NamedTuple):
    """How alike a text quantity and an image quantity rank the same things."""

    over: str
    text: str
    image: str
    rho: float
    p: float
    count: int


def main(arguments: Sequence[str]) -> None:
    """Prints the table."""
    del arguments
    values = _CONFIG.value.to_dict()
    workdir = Path(_WORKDIR.value)
    config, folder, count = _finished(values, workdir)
    found, result = measure(config, workdir, folder, count)
    rows = correlations(found, result)
    print(f"{'over':10}{'text space':36}{'image space':24}{'rho':>8}{'p':>10}{'n':>6}")
    for row in rows:
        print(f"{row.over:10}{row.text:36}{row.image:24}{row.rho:8.3f}{row.p:10.1e}{row.count:6d}")
    if _OUTPUT.value:
        records = [row._asdict() for row in rows]
        Path(_OUTPUT.value).write_text(json.dumps(records, indent=2) + "\n")


def measure(
    config: EditConfig, workdir: Path, folder: Path, count: int
) -> tuple[TextSpace, AiceResult]:
    """The run in text space and, from its stored judgements in `folder`, in images.

    UserError if the folder lacks a memory or a judgement.
    """
    job = edit.prepare(config)
    requests = job.requests[:count]
    about = [bank.provenance(request, config.stage_one, job.model) for request in requests]
    records = [bank.read_record(workdir / "bank", bank.key(one)) for one in about]
    concepts = concept_bank.of_requests(requests, records)
    moments = second_moment.read_moments(workdir / "moments" / "second_moments.safetensors")
    solved = concept_bank.solve(concepts, job.pipeline, moments, config.stage_two)
    assert job.judge is not None
    plan = make_plan(requests, job.judge.groups[OBJECT], config.evaluation)
    scores = {side: _stored(plan.draws(), folder, side) for side in ("before", "after")}
    result = score_plan(plan, scores["before"], scores["after"])
    found = text_space.measure(
        concepts,
        job.pipeline,
        solved,
        moments,
        config.stage_two,
        [one.name for one in result.holdout],
        job.captions[:2000],
    )
    return found, result


def correlations(found: TextSpace, result: AiceResult) -> list[Correlation]:
    """Spearman's rank correlation of every pair of quantities over requests, then hold-outs."""
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
    rows = _pairs("requests", text, image)
    kept = {one.name: one for one in found.kept}
    held = [one for one in result.holdout if one.name in kept]
    text = {
        "predicted drift": [kept[one.name].predicted for one in held],
        "cosine to nearest edit": [kept[one.name].similarity for one in held],
        "drift at block L": [kept[one.name].drift for one in held],
        "drift of final features": [kept[one.name].features for one in held],
    }
    return rows + _pairs("hold-out", text, {"damage": [one.pre - one.post for one in held]})


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


def _finished(values: dict[str, Any], workdir: Path) -> tuple[EditConfig, Path, int]:
    """The run's settings, where its judgements lie, and its number of requests."""
    if values["task"] == "ablate":
        config = settings.from_config_dict(values, AblateConfig)
        count = max(config.counts)
        return config.base, workdir / f"count-{count}", count
    return settings.from_config_dict(values, EditConfig), workdir, 2**31


def _stored(draws: Sequence[Draw], folder: Path, side: str) -> Scores:
    """Judgements of the last run in `folder`; UserError if some are missing."""

    def refuse(*_: Any) -> np.ndarray:
        raise UserError(f"{folder}: lacks judgements; give the settings that it was made with")

    depends_on = (folder / "images" / side / ".fingerprint").read_text()
    return scored_images(draws, refuse, refuse, 1, folder / "evaluation" / side, depends_on)


if __name__ == "__main__":
    app.run(main)
