"""Whose a path is: by the list in a workdir, by content where there is none, never by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums, ownership

VERSION_0_1 = Path(__file__).parents[1] / "data" / "version_0_1"
NAMES = ("config.json", "metrics.jsonl", "bank", "moments", "grid-*.png")
SAID = "--workdir is 'w'"


@dataclasses.dataclass(frozen=True)
class Model:
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    model: Model = Model()
    names: tuple[str, ...] = ("a", "x" * 10_000, "\0")


def refused(folder: Path, named: Path) -> None:
    with pytest.raises(UserError) as caught:
        ownership.require_free(folder, NAMES, SAID)
    assert str(caught.value).startswith(SAID)
    assert str(named) in str(caught.value)


def test_what_is_not_there_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    ownership.require_free(tmp_path / "new", NAMES, SAID)
    (tmp_path / "bank").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    ownership.require_free(tmp_path, NAMES, SAID)
    assert sorted(os.listdir(tmp_path)) == ["bank", "notes.txt"]


def test_names_are_ours_once_they_were_taken(tmp_path: Path) -> None:
    ownership.take(tmp_path, NAMES, SAID)
    for name in ("config.json", "grid-1.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "moments").mkdir()
    ownership.require_free(tmp_path, NAMES, SAID)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"report\.html was not written by this program"):
        ownership.take(tmp_path, ("report.html",), SAID)
    (tmp_path / "report.html").unlink()
    ownership.take(tmp_path, ("report.html",), SAID)
    (tmp_path / "report.html").write_text("x")
    ownership.require_free(tmp_path, (*NAMES, "report.html"), SAID)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "bank", "grid-7.png"])
def test_a_name_alone_makes_nothing_ours(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "bank":
        path.mkdir()
        path = path / "concepts.json"
    path.write_text('{"mine": 1}\n')
    refused(tmp_path, tmp_path / name)
    for content in ("{", "[]", '{"names": 3}', '{"names": [[]]}', "[" * 100_000):
        (tmp_path / ownership.LIST).write_text(content)
        refused(tmp_path, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", json.dumps({"config": {}, "inputs": {}, "environment": {}})),
        ("metrics.jsonl", '{"time": 1.5, "phase": "prepare", "seconds": 0.5}\n{"cut'),
        ("images.csv", "model,prompt,seed,file\nbase,a dog,0,images/base/a-dog.png\n"),
    ],
)
def test_a_run_without_a_list_is_known_by_its_record(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / "moments").mkdir()
    (tmp_path / "moments" / "x").write_text("x")
    refused(tmp_path, tmp_path / "moments")
    (tmp_path / name).write_text(content)
    ownership.require_free(tmp_path, NAMES, SAID)


def test_banks_and_moments_that_were_copied_are_known_by_their_metadata(tmp_path: Path) -> None:
    shutil.copytree(VERSION_0_1 / "bank", tmp_path / "bank")
    (tmp_path / "moments").mkdir()
    shutil.copy(VERSION_0_1 / "second_moments.safetensors", tmp_path / "moments")
    units = tmp_path / "moments" / "units.safetensors"
    checksums.write_tensors(units, {"x": np.zeros(1)}, {"unit_statistics": "{}"})
    ownership.require_free(tmp_path, NAMES, SAID)
    (tmp_path / "bank" / "mine.safetensors").write_text("mine")
    refused(tmp_path, tmp_path / "bank")


def test_links_and_pipes_are_refused_even_if_their_names_are_ours(tmp_path: Path) -> None:
    ownership.take(tmp_path, NAMES, SAID)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bank").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="bank: is a link"):
        ownership.require_free(tmp_path, NAMES, SAID)
    (tmp_path / "bank").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is a pipe"):
        ownership.require_free(tmp_path, NAMES, SAID)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "{}"),
        ("config.json", '{"_class_name": "UNet2DConditionModel"}'),
        ("config.json", '{"architectures": ["CLIPTextModel"]}'),
    ],
)
def test_a_models_folder_is_left_alone(file: str, content: str, tmp_path: Path) -> None:
    model = tmp_path / "models" / "sd"
    model.mkdir(parents=True)
    (model / file).write_text(content)
    (tmp_path / "link").symlink_to(model)
    for folder in (model, model / "runs" / "new", tmp_path / "link", tmp_path / "link" / "x"):
        with pytest.raises(UserError, match=rf"^{SAID}, .* model"):
            ownership.require_apart(folder, SAID)
    ownership.require_apart(tmp_path, SAID)
    ownership.require_apart(tmp_path, SAID, Settings())
    ownership.require_apart(tmp_path / "models" / "beside", SAID, Settings(Model(str(model))))
    for folder in (tmp_path, tmp_path / "models"):
        for path in (model, tmp_path / "link"):
            with pytest.raises(UserError, match=f"which holds the model {path}"):
                ownership.require_apart(folder, SAID, Settings(Model(str(path))))


def test_a_model_that_we_wrote_into_a_workdir_may_be_read_there(tmp_path: Path) -> None:
    ownership.take(tmp_path, ("model",), SAID)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    ownership.require_apart(tmp_path, SAID, Settings(Model(str(tmp_path / "model"))))
