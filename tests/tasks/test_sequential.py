"""The task `sequential` on the tiny model: a re-solved bank forgets the order of its edits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import sequential
from emcid_jax.tasks.sequential import SequentialConfig

PAIRS = (("dog", "cat"), ("goldfish", "beach"), ("nurse", "snow"), ("doctor", "city"))


@pytest.fixture
def config(tiny_pipeline_folder: Path, tmp_path: Path) -> SequentialConfig:
    requests = [{"source": a, "dest": b, "templates": ["a photo of a {}"]} for a, b in PAIRS]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    words = ("a shark", "the tench", "a car", "an engineer", "Monet", "a dog")
    captions = [
        f"a photo of {a} and {b} in a picture of {c}" for a in words for b in words for c in words
    ]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "requests.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(
            layer=2, steps=40, learning_rate=0.002, objective="text-only"
        ),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(2,), preservation_weight=1e-3),
        evaluation=settings.EvaluationConfig(enabled=False),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    return SequentialConfig(base=base, rounds=(1, 2), captions=40)


def test_order_counts_only_where_weights_are_edited_again(
    config: SequentialConfig, tmp_path: Path
) -> None:
    sequential.run(config, tmp_path / "out")
    path = tmp_path / "out" / "sequential.json"
    rows = {(r["rounds"], r["way"]): r for r in json.loads(path.read_text())["rows"]}
    assert len(rows) == 4
    once, again = rows[1, "bank"], rows[2, "bank"]
    for name in ("left", "reached", "drift"):
        np.testing.assert_allclose(rows[1, "edited"][name], once[name], rtol=1e-6)
        np.testing.assert_allclose(again[name], once[name], rtol=1e-3)
    assert rows[2, "edited"]["drift"] != pytest.approx(once["drift"], rel=1e-2)
    assert again["measured"] == [1, 2]
    assert len(again["retention_curve"]) == 2
    # The first round writes half of the requests, and so moves captions less.
    assert again["drift_curve"][0] < again["drift_curve"][1]
    assert len((tmp_path / "out" / "sequential.md").read_text().splitlines()) == 2 + 4


def test_more_rounds_than_requests_are_refused(config: SequentialConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.rounds has 5, but there are 4 requests"):
        sequential.run(dataclasses.replace(config, rounds=(1, 5)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
