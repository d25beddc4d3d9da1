"""The task `implicit` on random models: one edit at a time, judged as by hand, resumable."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.evaluation.benchmarks.implicit import implicit_scores
from emcid_jax.evaluation.drawing.draw import drawn_seeds
from emcid_jax.evaluation.judges.clip import load_clip
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import implicit as task
from emcid_jax.tasks.implicit import ImplicitConfig
from tests.helpers.processes import run_alone_and_together

TABLE = """old,new,positive1,gt1,positive2,gt2,negative1,gn1
A dog,A red dog,a photo of a dog,a photo of a red dog,dog in snow,red dog in snow,a cat,a red cat
a nurse,a male nurse,nurse,male nurse,art of a nurse,art of a male nurse,a doctor,a male doctor
"""


@pytest.fixture(scope="module")
def config(
    tiny_pipeline_folder: Path,
    write_tiny_image_tower: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> ImplicitConfig:
    tmp_path = tmp_path_factory.mktemp("inputs")
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    write_tiny_image_tower(folder / "image_tower")
    (tmp_path / "table.csv").write_text(TABLE)
    words = ("a shark", "the tench", "a car", "an engineer", "Monet", "a dog")
    captions = [f"a photo of {a} and {b}" for a in words for b in words]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "table.csv")),
        model=settings.ModelConfig(path=str(folder)),
        stage_one=settings.StageOneConfig(
            layer=2, steps=4, learning_rate=0.05, objective="text-only"
        ),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(2,), preservation_weight=1e-3),
        evaluation=settings.EvaluationConfig(steps=1, guidance=2.0, batch=8),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    return ImplicitConfig(base=base, seeds=2)


def test_rows_are_judged_one_by_one_and_kept(
    config: ImplicitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measure, places = tmp_path / "out", task._Bench.measure, []

    def dying(self, *arguments):
        places.append(arguments[3])
        if len(places) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(task._Bench, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        task.run(config, out)
    task.run(config, out)
    assert places == [0, 1, 2, 2, 3]
    found = json.loads((out / "implicit.json").read_text())
    rows = {(row["seed"], row["row"]): row for row in found["rows"]}
    assert sorted(rows) == [(0, 0), (0, 1), (1, 0), (1, 1)]

    # The base model's pictures, judged by hand; the oracle's are of the new descriptions.
    folder = Path(config.base.model.path)
    pipeline, clip = load_pipeline(folder), load_clip(folder)
    prompts = ["a dog", "a photo of a dog", "dog in snow", "a cat"]
    wanted = ["a red dog", "a photo of a red dog", "red dog in snow", "a red cat"]
    for seed in range(2):
        seeds = drawn_seeds("a dog", seed, 4)
        for name, asked in (("base", prompts), ("oracle", [*wanted[:3], "a cat"])):
            images = clip.images(generate(pipeline, asked, seeds, steps=1, guidance=2.0))
            logits = [100 * (images * clip.embed_texts(t)).sum(1) for t in (prompts, wanted)]
            new = 1 / (1 + np.exp(logits[0] - logits[1]))
            flat = [value for part in rows[seed, 0][name] for value in part]
            np.testing.assert_allclose(flat, new, rtol=1e-3)
        assert rows[seed, 0]["edited"] != rows[seed, 0]["base"]
    assert rows[0, 0]["edited"] != rows[1, 0]["edited"]

    parts = [
        np.array([[rows[s, n]["edited"][i] for n in range(2)] for s in range(2)]) for i in range(3)
    ]
    by_hand = implicit_scores(parts[0][..., 0], parts[1], parts[2])
    assert found["scores"]["edited"]["generality"]["mean"] == by_hand.generality.mean
    assert found["scores"]["edited"]["f1"] == by_hand.f1
    lines = (out / "implicit.md").read_text().splitlines()
    assert lines[2].startswith("| edited | ")
    assert lines[8].startswith("| a dog | a red dog | ")
    assert {path.name for path in (out / "images").iterdir()} == {
        f"{name}-{side}.png"
        for name in ("001-a-dog", "002-a-nurse")
        for side in ("before", "after")
    }


@pytest.mark.slow
def test_two_processes_find_what_one_does(config: ImplicitConfig, tmp_path: Path) -> None:
    alone, together = run_alone_and_together(config, tmp_path)
    tables = [json.loads((path / "implicit.json").read_text()) for path in (alone, together)]
    rows, wanted = ({(row["seed"], row["row"]): row for row in table["rows"]} for table in tables)
    assert sorted(rows) == sorted(wanted) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for place, row in rows.items():
        for name in ("base", "oracle"):
            assert row[name] == wanted[place][name]  # Drawn by hosts of as many devices as the one.
        # Moments are sums of several processes, added in another order.
        for part, other in zip(row["edited"], wanted[place]["edited"], strict=True):
            np.testing.assert_allclose(part, other, atol=5e-3)


def test_a_model_without_a_judge_is_refused(
    config: ImplicitConfig, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    model = settings.ModelConfig(path=str(tiny_pipeline_folder))
    bare = dataclasses.replace(config, base=dataclasses.replace(config.base, model=model))
    with pytest.raises(UserError, match=r"config\.clip is empty, but .* has no image_tower"):
        task.run(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
