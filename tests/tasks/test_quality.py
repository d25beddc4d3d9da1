"""The task `quality` on random models: general quality and artists by CLIP and LPIPS."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.config import EvaluationConfig, ModelConfig, RunConfig
from emcid_jax.evaluation.benchmarks.artists import read_artists
from emcid_jax.evaluation.benchmarks.quality import QualityConfig
from emcid_jax.evaluation.judges.clip import load_clip
from emcid_jax.evaluation.judges.lpips import load_lpips
from emcid_jax.models.scoring.lpips import Lpips
from emcid_jax.models.weights.params import write_params
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import load_pipeline, with_text_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import quality as task
from emcid_jax.tasks.quality import QualityTaskConfig
from emcid_jax.workflow.open_model import read_edited
from tests.helpers.processes import require_alike, run_alone_and_together

ROWS = """,case_number,prompt,evaluation_seed,artist,type
0,0,Art by Monet,3,Monet,erased
1,1,Monet,4,Monet,erased
2,2,Art by Dali,5,Dali,erased
3,3,A dog,6,Klimt,preserved
4,4,Art by Klimt,6,Klimt,holdout
5,5,Art by Banksy,7,Banksy,holdout
"""


@pytest.fixture(scope="module")
def config(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    write_tiny_image_tower: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> QualityTaskConfig:
    """A model with image tower and judge, and a text encoder three times as strong."""
    tmp_path = tmp_path_factory.mktemp("inputs")
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder)
    write_tiny_image_tower(folder / "image_tower")
    write_tiny_judge(folder / "judge", ["dog", "cat"])
    text = folder / "text_encoder" / "model.safetensors"
    (tmp_path / "edited").mkdir()
    strong = {name: 3 * value for name, value in load_file(text).items()}
    save_file(strong, tmp_path / "edited" / "model.safetensors")
    pixels = jnp.zeros((1, 64, 64, 3))
    params = Lpips().init(jax.random.key(0), pixels, pixels)["params"]
    params = {n: jax.tree.map(abs, v) if n.startswith("lin") else v for n, v in params.items()}
    write_params(tmp_path / "lpips.safetensors", params)
    (tmp_path / "artists.csv").write_text(ROWS)
    return QualityTaskConfig(
        model=ModelConfig(path=str(folder)),
        edited=str(tmp_path / "edited"),
        evaluation=EvaluationConfig(steps=1, guidance=2.0, batch=8),
        quality=QualityConfig(count=8),
        artists=str(tmp_path / "artists.csv"),
        lpips=str(tmp_path / "lpips.safetensors"),
        run=RunConfig(compile_cache=False, progress=False),
    )


@pytest.mark.slow
def test_figures_of_artists_are_those_of_drawing_directly(
    config: QualityTaskConfig, tmp_path: Path
) -> None:
    task.run(config, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert found["quality"]["captions"] == found["quality"]["real"] == 8
    assert found["artists"]["artists"] == {"erased": 2, "kept": 2}

    erased, kept = read_artists(Path(config.artists))
    assert list(kept) == ["Klimt", "Banksy"]
    base = load_pipeline(Path(config.model.path))
    edited = with_text_params(base, read_edited(config.edited, base, "config.edited"))
    clip, lpips = load_clip(Path(config.model.path)), load_lpips(Path(config.lpips))

    def drawn(pipeline, draws):
        prompts, seeds = zip(*draws, strict=True)
        images = generate(pipeline, prompts, seeds, steps=1, guidance=2.0)
        scores = 100 * (clip.images(images) * clip.embed_texts(prompts)).sum(1)
        return scores, lpips.small(images).reshape(len(images), -1).astype(np.float32)

    clip_found, lpips_found = found["artists"]["clip"], found["artists"]["lpips"]
    for part, name in ((erased, "e"), (kept, "s")):
        sides = [[drawn(model, draws) for draws in part.values()] for model in (base, edited)]
        for side, label in zip(sides, ("before", "after"), strict=True):
            mean = np.mean([scores.mean() for scores, _ in side])
            assert clip_found[label][f"clip_{name}"]["value"] == pytest.approx(mean, abs=0.05)
        apart = [lpips(a, b).mean() for (_, a), (_, b) in zip(*sides, strict=True)]
        value = lpips_found["lpips_" + {"e": "e", "s": "u"}[name]]["value"]
        assert value == pytest.approx(np.mean(apart), rel=1e-4)
        assert value > 0
    text = (tmp_path / "out" / "quality.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == [
        "CLIP score, 8 captions", "FID of the edited model against the base (judge)",
        "FID against 8 real pictures", "CLIP_e", "CLIP_s", "H_a", "LPIPS_e", "LPIPS_u",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_find_what_one_does(config: QualityTaskConfig, tmp_path: Path) -> None:
    alone, together = run_alone_and_together(config, tmp_path)
    found, wanted = (json.loads((path / "quality.json").read_text()) for path in (alone, together))
    # An image drawn beside others is rounded in another way, and scores are in percent.
    require_alike(found, wanted, 2e-3)


def test_mistakes_are_told_first(config: QualityTaskConfig, tmp_path: Path) -> None:
    for change, message in (
        ({"edited": ""}, r"config\.edited is ''; give a text_encoder folder"),
        ({"artists": config.lpips}, "encoding: is not UTF-8"),
        ({"lpips": "alex.pth"}, r"alex\.pth: no \.safetensors file; write one where"),
    ):
        with pytest.raises(UserError, match=message):
            task.run(dataclasses.replace(config, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad.csv").write_text(ROWS.replace(",5,", ",x,"))
    with pytest.raises(UserError, match=r"bad\.csv:4: evaluation_seed: is no number \('x'\)"):
        read_artists(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text(ROWS.replace("holdout", "preserved"))
    with pytest.raises(UserError, match=r"type: has no row \('holdout'\)"):
        read_artists(tmp_path / "bad.csv")
    with pytest.raises(UserError, match=r"lpips is 'x', but config\.artists is empty"):
        QualityTaskConfig(lpips="x").check()
