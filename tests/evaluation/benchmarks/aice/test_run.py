"""AICE end to end on random models: against direct drawing, with a kill in the middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks.aice.gallery import Evaluation
from emcid_jax.evaluation.benchmarks.aice.run import evaluate, make_plan
from emcid_jax.evaluation.drawing import batches
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.drawing.kept_pictures import claim
from emcid_jax.evaluation.drawing.png import png
from emcid_jax.evaluation.judges.classifier import Judge, load_judge
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError

NAMES = ["dog", "cat, kitten", "goldfish", "tench", "snow", "beach", "great white shark"]
CONFIG = EvaluationConfig(steps=1, guidance=2.0, batch=8, holdout=2)
REQUESTS = [
    EditRequest("dog", "cat", ("A photo of {}", "{}"), validation_templates=("my {}",)),
    EditRequest("kitten", "tench", ("A photo of {}",), validation_templates=("../ <my> {}",)),
    EditRequest("Monet", "art", ("by {}",)),
]


@pytest.fixture(scope="module")
def judge(write_tiny_judge: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Judge:
    path = tmp_path_factory.mktemp("judge")
    write_tiny_judge(path, NAMES)
    return load_judge(path)


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def edited(base: Pipeline) -> Pipeline:
    return with_text_params(
        base, {"text_encoder": jax.tree.map(lambda x: 3.0 * x, base.params["text_encoder"])}
    )


def test_scores_are_those_of_drawing_directly(
    base: Pipeline, edited: Pipeline, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Evaluation:
        models = Models(base, edited, "b", judge=judge)
        return evaluate(REQUESTS, models, CONFIG, tmp_path, progress=False)

    def dying(*arguments, **options):
        if len(list((tmp_path / "evaluation" / "after").glob("*.npz"))) == 1:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "generate", dying)
        with pytest.raises(KeyboardInterrupt):
            run()
    drawn: list[int] = []

    def counting(pipeline, prompts, *arguments, **options):
        drawn.append(len(prompts))
        return generate(pipeline, prompts, *arguments, **options)

    monkeypatch.setattr(batches, "generate", counting)
    found = run()
    # 2 + 2 templates, 1 + 1 templates, (1 + 1) x 2 sentences, 1 alias, 2 x 3 hold-outs: three
    # chunks of 6 each side, of which all clean ones and one edited one were already on disk.
    result = found.result
    assert result.images == 4 + 2 + 4 + 1 + 6
    assert drawn == [6, 6]
    assert len(result.records) == 2
    assert len(result.holdout) == 2
    assert result.skipped[0].startswith("request 3 ('Monet')")

    record, pair = result.records[0], found.pairs[0]
    assert (record.source_id, record.dest_id) == (0, 1)
    assert pair.prompt == "my dog"
    assert pair.wanted is not None
    plan = make_plan(REQUESTS, judge.groups["object"], CONFIG).requests[0]
    direct = [*plan.edit_source, *plan.general_source, *plan.general_dest]
    prompts = [draw.prompt for draw in direct]
    assert prompts == ["A photo of dog", "dog", "my dog", "my cat"]
    kept = {"pre": {2: pair.before, 3: pair.wanted}, "post": {2: pair.after}}
    for side, pipeline in (("pre", base), ("post", edited)):
        # Filled up to 6 images, the size that has been compiled.
        seeds = [*(draw.seed for draw in direct), 0, 0]
        images = generate(pipeline, [*prompts, "", ""], seeds, steps=1, guidance=2.0)
        scores = judge.classify(images)["object"]
        for name, label in (("source", 0), ("source_dest", 1)):
            expected = scores[:2, label].mean()
            assert record.edit[f"{side}_{name}"] == pytest.approx(expected, rel=5e-3)
        for row, seen in kept[side].items():
            with Image.open(seen.path) as image:
                # A grey value may round the other way among other neighbours.
                np.testing.assert_allclose(np.asarray(image, int), images[row].astype(int), atol=1)
            assert seen.label == NAMES[scores[row].argmax()].split(",")[0]
            assert seen.probability == pytest.approx(scores[row].max(), rel=5e-3)
    assert record.edit["pre_source"] != pytest.approx(record.edit["post_source"], rel=2e-2)
    assert found.pairs[1].before.path.name == "0002-my-kitten.png"
    assert len(found.holdout_pairs) == 2
    assert all(p.before.path.exists() and p.after.path.exists() for p in found.holdout_pairs)

    drawn.clear()
    assert run().result == result
    assert drawn == []


def test_pictures_of_other_settings_do_not_stay(tmp_path: Path) -> None:
    old, foreign = tmp_path / "old.png", tmp_path / "holiday.png"
    claim(tmp_path, "a")
    picture = np.zeros((2, 2, 3), np.uint8)
    old.write_bytes(png(picture))
    Image.fromarray(picture).save(foreign)
    claim(tmp_path, "a")
    assert old.exists()
    claim(tmp_path, "b")
    assert not old.exists()
    assert foreign.exists()


def test_a_published_holdout_file_is_used(judge: Judge, tmp_path: Path) -> None:
    row = {"class name": "snow", "class id": 4, "text prompt": "deep snow", "random seed": "9"}
    path = tmp_path / "holdout.json"
    path.write_text(json.dumps([row]))
    config = EvaluationConfig(holdout_path=str(path))
    plan = make_plan(REQUESTS, judge.groups["object"], config)
    assert [(h.label, *h.draws[0]) for h in plan.holdout] == [(4, "deep snow", 9)]
    missing = EvaluationConfig(holdout_path=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"none\.json"):
        make_plan(REQUESTS, judge.groups["object"], missing)


def test_sources_that_cannot_be_scored_are_no_holdout(judge: Judge) -> None:
    request = EditRequest("snow", "something else", ("{}",))
    plan = make_plan([request], judge.groups["object"], EvaluationConfig())
    assert 4 not in {h.label for h in plan.holdout}
    assert len(plan.holdout) == len(NAMES) - 1
