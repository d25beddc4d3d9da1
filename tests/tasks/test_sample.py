"""The task `sample` against diffusers drawing from the same noise; resuming; names; grids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emcid_jax.config import ModelConfig, RunConfig
from emcid_jax.evaluation.drawing.png import read_note
from emcid_jax.reporting.plots import sample_grids
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import sample as task
from emcid_jax.tasks.sample import SampleConfig, SamplingConfig

# diffusers' Euler schedulers turn tensors into arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ("a photo of a dog on the beach", "../art by Monet: \U0001f40b!")
SEEDS = (3, 2**32 - 1)
STEPS = 6


def config_for(folder: Path, **changes: Any) -> SampleConfig:
    sampling = SamplingConfig(
        prompts=PROMPTS, seeds=SEEDS, steps=STEPS, guidance=4.0, negative="a cat", batch=4
    )
    return SampleConfig(
        model=ModelConfig(path=str(folder)),
        sampling=dataclasses.replace(sampling, **changes),
        run=RunConfig(compile_cache=False, progress=False),
    )


@pytest.fixture(scope="module")
def edited_folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with another text encoder, saved by transformers."""
    from transformers import CLIPTextModel

    workdir = tmp_path_factory.mktemp("edit")
    model = CLIPTextModel.from_pretrained(tiny_pipeline_folder / "text_encoder")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1.mlp.fc2.weight" in name:
                parameter *= -3
    model.save_pretrained(workdir / "text_encoder")
    return workdir


def drawn_by_diffusers(
    folder: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch, text_encoder: Path
) -> np.ndarray:
    """Every prompt with every seed, in order."""
    import diffusers
    from transformers import CLIPTextModel

    oracle = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, text_encoder=CLIPTextModel.from_pretrained(text_encoder)
    )
    oracle.scheduler = getattr(diffusers, scheduler).from_config(oracle.scheduler.config)
    oracle.set_progress_bar_config(disable=True)
    images = []
    for prompt in PROMPTS:
        for seed in SEEDS:
            rng = np.random.default_rng(seed)

            def fresh(*_: Any, rng: Any = rng, **__: Any) -> torch.Tensor:
                noise = rng.standard_normal((8, 8, 4)).astype(np.float32)
                return torch.tensor(noise.transpose(2, 0, 1))[None]

            latents = fresh()
            module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
            monkeypatch.setattr(module, fresh)
            image = oracle(
                prompt,
                negative_prompt="a cat",
                latents=latents,
                num_inference_steps=STEPS,
                guidance_scale=4.0,
            ).images[0]
            images.append(np.asarray(image))
    return np.stack(images)


def drawn(workdir: Path, model: str) -> np.ndarray:
    drawings = [task.Drawing(model, prompt, seed) for prompt in PROMPTS for seed in SEEDS]
    return np.stack([np.asarray(Image.open(task.path_of(workdir, one))) for one in drawings])


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
    ],
)
def test_draws_what_diffusers_draws_from_the_same_noise(
    scheduler: str,
    name: str,
    tiny_pipeline_folder: Path,
    edited_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edited = str(edited_folder) if scheduler == "euler" else ""
    task.run(config_for(tiny_pipeline_folder, scheduler=scheduler, edited=edited), tmp_path)
    encoders = {"base": tiny_pipeline_folder} | ({"edited": edited_folder} if edited else {})
    for model, folder in encoders.items():
        theirs = drawn_by_diffusers(
            tiny_pipeline_folder, name, monkeypatch, folder / "text_encoder"
        )
        difference = np.abs(drawn(tmp_path, model).astype(int) - theirs)
        assert difference.max() <= 2
        assert theirs.std(axis=0).max() > 10  # prompts and seeds differ
    if edited:
        assert np.abs(drawn(tmp_path, "base").astype(int) - drawn(tmp_path, "edited")).max() > 10
        grid = np.asarray(Image.open(tmp_path / "grid-1.png"))
        assert grid.shape[1] > sample_grids.LABEL + 4 * sample_grids.CELL


@pytest.fixture(scope="module")
def plain(tiny_pipeline_folder: Path) -> SampleConfig:
    return config_for(tiny_pipeline_folder, guidance=1.0, steps=2)


def images(workdir: Path) -> dict[str, int]:
    found = sorted((workdir / "images").rglob("*"))
    return {str(f.relative_to(workdir)): f.stat().st_mtime_ns for f in found if f.is_file()}


def test_only_what_is_missing_is_drawn(plain: SampleConfig, tmp_path: Path) -> None:
    task.run(plain, tmp_path)
    first = images(tmp_path)
    assert len(first) == 4
    before = drawn(tmp_path, "base")
    task.run(plain, tmp_path)
    assert images(tmp_path) == first

    gone, damaged, *kept = first
    (tmp_path / gone).unlink()
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-30])
    task.run(plain, tmp_path)
    second = images(tmp_path)
    assert second.keys() == first.keys()
    assert [second[name] == first[name] for name in (gone, damaged, *kept)] == [False] * 2 + [
        True
    ] * 2
    np.testing.assert_array_equal(drawn(tmp_path, "base"), before)

    changed = dataclasses.replace(plain.sampling, noise="jax")
    task.run(dataclasses.replace(plain, sampling=changed), tmp_path)
    third = images(tmp_path)
    assert third.keys() == first.keys()
    assert not set(third.values()) & set(second.values())
    difference = np.abs(drawn(tmp_path, "base").astype(int) - before)
    assert difference.max(axis=(1, 2, 3)).min() > 10

    note = json.loads(read_note(tmp_path / gone) or "")
    assert note["prompt"] in PROMPTS
    assert note["noise"] == "jax"
    assert note["scheduler"]["_class_name"] == "DDIMScheduler"


def test_names_stay_inside_and_differ(tmp_path: Path) -> None:
    prompts = ["A dog", "a dog!", "../../x", "", "\U0001f40b", "a" * 300, "nul\x00"]
    paths = [task.path_of(tmp_path, task.Drawing("base", prompt, 1)) for prompt in prompts]
    assert len(set(paths)) == len(prompts)
    for path in paths:
        assert path.parent == tmp_path / "images" / "base"
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert len(path.name) < 80


def test_a_grid_shows_each_picture_at_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [
        f"prompt {i} \N{GREEK SMALL LETTER ALPHA} " * 20 for i in range(sample_grids.ROWS + 1)
    ]
    files = {}
    for i, prompt in enumerate(prompts):
        for model in ("base", "edited"):
            picture = rng.integers(0, 256, (8, 16, 3), np.uint8)
            files[model, prompt, 5] = tmp_path / f"{model}-{i}.png"
            files[model, prompt, 5].write_bytes(sample_grids.png(picture, "note"))
    names = sample_grids.write_grids(tmp_path, files, prompts, [5], ["base", "edited"])
    assert names == ["grid-1.png", "grid-2.png"]
    last = np.asarray(Image.open(tmp_path / "grid-2.png"))
    assert len(last) == sample_grids.HEADER + sample_grids.CELL + 4
    shown = last[sample_grids.HEADER :][:128, sample_grids.LABEL + sample_grids.CELL + 4 :][:, :256]
    edited = np.asarray(Image.open(files["edited", prompts[-1], 5]))
    np.testing.assert_array_equal(shown, edited.repeat(16, 0).repeat(16, 1))
    assert last[: sample_grids.HEADER].min() < 100  # the header's letters
    assert last[sample_grids.HEADER :, : sample_grids.LABEL].min() < 100  # the prompt's


def test_prompts_come_from_settings_and_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("  a cat \n\na dog\na cat\n", encoding="utf-8")
    config = SamplingConfig(prompts=("a dog",), prompts_file=str(file))
    assert task.read_prompts(config) == (["a dog", "a cat"], [])
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompt"):
        task.read_prompts(SamplingConfig(prompts_file=str(file)))
    with pytest.raises(UserError, match=r"config\.sampling\.prompts_file is .*nowhere': no such"):
        task.read_prompts(SamplingConfig(prompts_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ()}, "config.sampling.prompts is empty"),
        ({"seeds": ()}, "config.sampling.seeds is empty"),
    ],
)
def test_nothing_to_draw_is_refused(change: dict[str, Any], message: str) -> None:
    sampling = dataclasses.replace(SamplingConfig(prompts=PROMPTS), **change)
    with pytest.raises(UserError, match=message):
        SampleConfig(sampling=sampling).check()


def test_mistakes_are_found_before_anything_is_written(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    for change, message in (
        ({"edited": "nowhere"}, r"config\.sampling\.edited is 'nowhere'"),
        ({"steps": 1001}, "steps=1001 is not supported"),
    ):
        with pytest.raises(UserError, match=message):
            task.run(config_for(tiny_pipeline_folder, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tables_rows_bring_their_own_seeds(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """As i2p's; pictures, with a list of them for a detector, and no grid."""
    table = tmp_path / "i2p.csv"
    table.write_text('case_number,prompt,evaluation_seed\n0,"a dog, a cat",7\n1,snow,8\n2,snow,7\n')
    config = config_for(tiny_pipeline_folder, prompts=(), prompts_file=str(table), steps=1)
    task.run(config, tmp_path / "out")
    lines = (tmp_path / "out" / "images.csv").read_text().splitlines()
    assert lines[0] == "model,prompt,seed,file"
    assert lines[1].startswith('base,"a dog, a cat",7,images/base/a-dog-a-cat-')
    assert [line.split(",")[-2] for line in lines[1:]] == ["7", "8", "7"]
    for line in lines[1:]:
        note = read_note(tmp_path / "out" / line.split(",")[-1])
        assert note is not None
        assert json.loads(note)["seed"] == int(line.split(",")[-2])
    assert not list((tmp_path / "out").glob("grid-*.png"))
