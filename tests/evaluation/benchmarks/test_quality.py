"""General quality on random models: against direct drawing, with a kill in the middle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from emcid_jax.config import EvaluationConfig, from_config_dict
from emcid_jax.evaluation.benchmarks import quality
from emcid_jax.evaluation.benchmarks.quality import QualityConfig, load_evaluators, read_captions
from emcid_jax.evaluation.benchmarks.quality_captions import (
    QualityCaption,
    captions_in_file,
    sprite_captions,
    unrelated,
)
from emcid_jax.evaluation.drawing import both
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.judges.classifier import Judge, load_judge
from emcid_jax.evaluation.statistics.fid import fid
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError

CONFIG = EvaluationConfig(steps=1, guidance=2.0, batch=4)


@pytest.fixture(scope="module")
def judge(write_tiny_judge: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Judge:
    path = tmp_path_factory.mktemp("judge")
    write_tiny_judge(path, ["dog", "cat"])
    return load_judge(path)


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The random model with an image tower in its folder, as the sprite model has one."""
    import transformers

    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, projection_dim=6,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_tower")
    file = folder / "image_tower" / "model.safetensors"
    projection = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    save_file(load_file(file) | {"text_projection.weight": projection}, file)
    return load_pipeline(folder)


def test_figures_are_those_of_drawing_directly(
    base: Pipeline, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = with_text_params(
        base, {"text_encoder": jax.tree.map(lambda x: 3.0 * x, base.params["text_encoder"])}
    )
    captions = [
        QualityCaption(text, seed, sprite.real)
        for seed, (text, sprite) in enumerate(
            zip(["a dog", "a cat", "snow", "a beach", "a dog", "a car"], sprite_captions(6, 1),
                strict=True)
        )
    ]  # fmt: skip
    config = QualityConfig()
    evaluators = load_evaluators(config, base, judge)
    models = Models(base, edited, "b", judge=judge)

    def run() -> dict:
        return quality.evaluate(captions, models, evaluators, CONFIG, tmp_path, progress=False)

    drawn, draw = [], both.drawing

    def dying(*arguments):
        inner = draw(*arguments)

        def generate(prompts, seeds):
            drawn.append(list(prompts))
            if len(drawn) == 2:
                raise KeyboardInterrupt
            return inner(prompts, seeds)

        return generate

    monkeypatch.setattr(both, "drawing", dying)
    with pytest.raises(KeyboardInterrupt):
        run()
    found = run()
    # Three images a batch; the one that was drawn before the kill is not drawn again.
    assert [len(prompts) for prompts in drawn] == [3, 3, 3, 3, 3]
    assert json.loads(json.dumps(found)) == found
    assert run() == found
    assert len(drawn) == 5

    prompts, seeds = ([caption[i] for caption in captions] for i in (0, 1))
    vectors, features = [], []
    for pipeline in (base, edited):
        images = generate(pipeline, prompts, seeds, steps=1, guidance=2.0)
        vectors.append(evaluators.clip.images(images))
        features.append(evaluators.features(images))
    texts = evaluators.clip.embed_texts(prompts)
    scores = [100 * (images * texts).sum(1).astype(np.float64) for images in vectors]
    features.append(evaluators.features([caption.real.read() for caption in captions]))
    # Kept in half precision.
    for name, values in zip(("before", "after"), scores, strict=True):
        assert found["clip_score"][name]["value"] == pytest.approx(values.mean(), abs=0.05)
    change = found["clip_score"]["change"]
    assert change["value"] == pytest.approx((scores[1] - scores[0]).mean(), abs=0.05)
    assert change["low"] < change["value"] < change["high"]
    before, after, real = features
    for name, pair in {"change": (after, before), "before": (before, real), "after": (after, real)
                       }.items():  # fmt: skip
        assert found["fid"][name] == pytest.approx(fid(*pair), rel=0.02, abs=1e-3)
    assert (found["captions"], found["real"]) == (6, 6)

    # Nothing real: no FID against it; an edit that changes nothing changes no figure.
    bare = [caption._replace(real=None) for caption in captions]
    same = dataclasses.replace(models, edited=base)
    found = quality.evaluate(bare, same, evaluators, CONFIG, tmp_path, progress=False)
    assert found["fid"] == {"change": pytest.approx(0, abs=1e-6), "before": None, "after": None}
    assert found["clip_score"]["change"] == {"value": 0, "low": 0, "high": 0}


def test_without_a_tower_a_clip_model_is_asked_for(base: Pipeline, judge: Judge) -> None:
    elsewhere = dataclasses.replace(base, folder=base.folder.parent)
    with pytest.raises(UserError, match=r"config\.quality\.clip is empty, but .* no image_tower"):
        load_evaluators(QualityConfig(), elsewhere, judge)
    with pytest.raises(UserError, match=r"inception is empty, and the model has no judge; give"):
        load_evaluators(QualityConfig(), base, None)


def test_sprite_captions_come_with_their_pictures() -> None:
    captions = sprite_captions(40, 7)
    assert [one[:2] for one in captions] == [one[:2] for one in sprite_captions(41, 7)[:40]]
    assert [caption.seed for caption in captions] == list(range(7, 47))
    pictures = [caption.real for caption in captions]
    assert len({picture.name for picture in pictures if picture}) == 40
    first = captions[0].real
    assert first is not None
    np.testing.assert_array_equal(first.read(), first.read())


def test_captions_that_name_an_edit_are_left_out() -> None:
    captions = [QualityCaption(text, 0) for text in ("A Hen, sitting", "then a dog", "hens")]
    assert [caption.prompt for caption in unrelated(captions, ["hen"])] == ["then a dog", "hens"]
    config = QualityConfig(count=30)
    assert len(read_captions(config)) == 30
    words = [word for caption in read_captions(config) for word in caption.prompt.split()]
    with pytest.raises(UserError, match="0 of 30 captions name no edited concept; raise"):
        read_captions(config, words)


def test_captions_of_a_file_with_real_pictures(tmp_path: Path) -> None:
    table = tmp_path / "coco.csv"
    table.write_text(
        "case_number,source,prompt,evaluation_seed,coco_id\n"
        '0,coco,"A clock, and\na wheel.",41337,203564\n1,coco,A bus ,5,9\n2,coco,No picture,6,10\n'
    )
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "COCO_val2014_000000203564.png")
    Image.new("L", (2, 2), 9).save(tmp_path / "9.jpg")
    first, second = captions_in_file(table, 2, tmp_path)
    assert first[:2] == ("A clock, and\na wheel.", 41337)
    assert second[:2] == ("A bus", 5)
    assert first.real is not None
    assert second.real is not None
    np.testing.assert_array_equal(first.real.read()[2, 3], [255, 0, 0])
    assert second.real.read().shape == (2, 2, 3)
    assert len(captions_in_file(table, 0)) == 3
    with pytest.raises(UserError, match=r"no picture of 1 of 3 captions, coco_id 10 the first"):
        captions_in_file(table, 0, tmp_path)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is a table without a column prompt or caption"):
        captions_in_file(tmp_path / "bad.csv", 0)
    (tmp_path / "bad.csv").write_text("prompt,evaluation_seed\na,1\nb,x\n")
    with pytest.raises(UserError, match=r"bad\.csv:3: evaluation_seed: is no number \('x'\)"):
        captions_in_file(tmp_path / "bad.csv", 0)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"config\.quality\.count is 0; say how many"):
        from_config_dict({"count": 0}, QualityConfig, "config.quality")
    values = dataclasses.asdict(QualityConfig(real_images="photos"))
    with pytest.raises(UserError, match=r"real_images is 'photos', but those of `sprites`"):
        from_config_dict(values, QualityConfig, "config.quality")
