"""Every task and every call that writes refuses, by name, what this program did not write.

Tasks are those of `main`, and calls those of the package: a new one cannot be left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags

import emcid_jax
from emcid_jax import main
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EditConfig, ModelConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.export import edit_file, into_folder, into_single_file, lora, text_encoder
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import environment
from main_job import written

VERSION_0_1 = Path(__file__).parent / "data" / "version_0_1"
WRITING_CALLS = {"run_stage_one", "export"}
OTHER_CALLS = {"apply", "load_pipeline", "sample", "second_moments", "solve"}
BANK, EDIT = {"bank": str(VERSION_0_1 / "bank")}, {"edit": str(VERSION_0_1 / "edit.safetensors")}
OPERATIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "bank": {
        "list": (),
        "show": (),
        "diff": (),
        "add": ("metrics.jsonl",),
        "remove": (),
        "strength": (),
        "merge": (),
        "conflicts": ("config.json", "metrics.jsonl", "moments", "conflicts.json"),
        "solve": ("config.json", "metrics.jsonl", "moments", "text_encoder", "edit.safetensors"),
        "port": ("config.json", "metrics.jsonl", "moments", "text_encoder", "port.json"),
    },
    "edit_file": {
        "show": (),
        "apply": (),
        "undo": (),
        "folder": ("model",),
        "clip": ("clip_l.safetensors",),
        "lora": ("lora.safetensors",),
        "diff": ("diff.safetensors",),
        "checkpoint": ("x-edited.safetensors",),
    },
}
"""Operation -> what it writes in the workdir."""
NEEDED = {
    "bank": BANK | {"other": BANK["bank"], "names": ("dog",), "requests": {"path": "x.json"}},
    "edit_file": EDIT,
    "text_report": BANK,
    "sample": {"sampling": {"prompts": ("a dog",)}},
    "layer_ranges": {"keep": ("dog",)},
    "trace": {"names": ("dog", "cat")},
}
"""Settings without which a task's other settings are not looked at."""


def cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Task, operation, and names of what is written at the top of the workdir."""
    for task in main.TASKS:
        names = importlib.import_module(f"emcid_jax.tasks.{task}").WRITES
        operations = OPERATIONS.get(task, {"": names})
        if task in OPERATIONS:
            known = {name for some in operations.values() for name in some}
            assert known <= {*names, "x-edited.safetensors"}
        for operation, files in operations.items():
            yield task, operation, tuple(name.replace("*", "x") for name in files)


CASES = list(cases())
WRITING = [case for case in CASES if case[2]]


@pytest.fixture
def model(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "model"))


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Runs a task; it must end with exit code 2 and one line, and leave all as it was."""
    monkeypatch.setattr(environment, "use_compile_cache", lambda: None)
    monkeypatch.setattr("emcid_jax.runtime.parallel.use_cpu_devices", lambda count: None)
    monkeypatch.setattr("sys.dont_write_bytecode", False)  # As Python has it.

    def run(task: str, operation: str, workdir: Path, model: Path) -> str:
        file = written(asked(task, operation, model), tmp_path / "settings.py")
        before = tree(tmp_path)
        flags.FLAGS.unparse_flags()
        rest = main._parse_flags(["main", f"--config={file}", f"--workdir={workdir}"])
        assert main.main(rest) == 2
        assert tree(tmp_path) == before
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.strip().splitlines()
        return line

    return run


def asked(task: str, operation: str, model: Path) -> dict[str, Any]:
    """Settings that name `model` in every field for a model."""
    config = importlib.import_module(f"emcid_jax.tasks.{task}").Config
    values: dict[str, Any] = {"task": task, **NEEDED.get(task, {})}
    values |= {"operation": operation} if operation else {}
    if task == "edit":
        values["requests"] = {"path": "x.json"}
    file = model / "x.safetensors"
    file.touch()
    path = str(file if operation == "checkpoint" else model)
    for field in dataclasses.fields(config):
        if isinstance(field.default, ModelConfig):
            values[field.name] = {"path": path}
        elif isinstance(field.default, EditConfig):
            values[field.name] = {"model": {"path": path}, "requests": {"path": "x.json"}}
        elif field.name == "model":
            values[field.name] = path
    return json.loads(json.dumps(values))


def tree(folder: Path) -> dict[str, str]:
    """Everything under `folder`: what it is, and the hash of what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = f"{path.lstat().st_mode:o}"
    return found


@pytest.mark.parametrize(("task", "operation", "names"), CASES)
def test_a_models_folder_is_no_workdir(
    task: str, operation: str, names: tuple[str, ...], model: Path, refused: Callable[..., str]
) -> None:
    for workdir in (model, model / "text_encoder", model / "runs" / "new"):
        line = refused(task, operation, workdir, model)
        assert f"--workdir is {str(workdir)!r}, " in line
        assert "model" in line.partition(repr(str(workdir)))[2]


@pytest.mark.parametrize(("task", "operation", "names"), WRITING)
def test_a_workdir_does_not_hold_the_model_and_is_not_behind_a_link_to_it(
    task: str,
    operation: str,
    names: tuple[str, ...],
    model: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    (tmp_path / "link").symlink_to(model)
    assert str(tmp_path / "link") in refused(task, operation, tmp_path / "link", model)
    if not task.startswith("train_sprites") and operation != "checkpoint":  # They name no folder.
        assert f"which holds the model {model}" in refused(task, operation, tmp_path, model)


@pytest.mark.parametrize(("task", "operation", "names"), WRITING)
def test_files_of_the_user_are_refused_by_name(
    task: str,
    operation: str,
    names: tuple[str, ...],
    model: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in names:
        for kind in ("file", "folder", "link", "pipe"):
            workdir = tmp_path / "results"
            workdir.mkdir()
            path = workdir / name
            if kind == "file":
                path.write_text("mine")
            elif kind == "folder":
                path.mkdir()
                (path / "mine").write_text("mine")
            elif kind == "link":
                path.symlink_to(tmp_path / "mine")
            else:
                os.mkfifo(path)
            line = refused(task, operation, workdir, model)
            assert str(workdir if task == "convert" else path) in line
            shutil.rmtree(workdir)


# The calls for Python


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture
def leaves_all(tmp_path: Path) -> Callable[[Path, Callable[[], object]], None]:
    """Makes a call; it must name the path and leave all as it was."""

    def run(named: Path, call: Callable[[], object]) -> None:
        before = tree(tmp_path)
        with pytest.raises(UserError) as caught:
            call()
        assert str(named) in str(caught.value)
        assert tree(tmp_path) == before

    return run


def test_every_call_of_the_package_is_known_to_this_test() -> None:
    calls = {name for name in emcid_jax.__all__ if not isinstance(getattr(emcid_jax, name), type)}
    assert calls == WRITING_CALLS | OTHER_CALLS


def test_export(
    pipeline: Pipeline,
    model: Path,
    leaves_all: Callable[[Path, Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(results)
    for target, named in (
        (model, model),
        (model / "text_encoder", model / "text_encoder" / "config.json"),
        (model / "new", model / "new"),
        (model / "runs" / "new" / "text_encoder", model / "runs" / "new" / "text_encoder"),
        (results, results / "notes.txt"),
        (results / "notes.txt", results / "notes.txt"),
        (tmp_path / "link", tmp_path / "link"),
    ):
        leaves_all(named, lambda target=target: emcid_jax.export(pipeline, target))


def test_banks(
    pipeline: Pipeline,
    model: Path,
    leaves_all: Callable[[Path, Callable[[], object]], None],
    tmp_path: Path,
) -> None:
    request = EditRequest("dog", "cat", ("{}",))
    other = VERSION_0_1 / "bank"
    calls: list[Callable[[Path], object]] = [
        lambda folder: emcid_jax.run_stage_one(pipeline, [request], folder),
        lambda folder: concept_bank.add(folder, []),
        lambda folder: concept_bank.put(folder, []),
        lambda folder: concept_bank.merge(folder, other),
        lambda folder: concept_bank.remove(folder, []),
        lambda folder: concept_bank.set_strength(folder, [], 0.5),
    ]
    for call in calls:
        for folder in (model, model / "text_encoder", model / "bank"):
            leaves_all(folder, lambda call=call, folder=folder: call(folder))
    for name in ("metrics.jsonl", "memories.pack", "concepts.json", ".lock"):
        folder = tmp_path / name.strip(".").split(".", maxsplit=1)[0]
        folder.mkdir()
        if name == ".lock":
            os.mkfifo(folder / name)
        else:
            (folder / name).write_text("mine")
        for call in calls if name != "metrics.jsonl" else calls[:1]:
            leaves_all(folder / name, lambda call=call, folder=folder: call(folder))


def test_exports_to_files(
    model: Path, leaves_all: Callable[[Path, Callable[[], object]], None], tmp_path: Path
) -> None:
    _, ledger = edit_file.read_edit(VERSION_0_1 / "edit.safetensors")
    content = edit_file.pack({1: np.eye(32, 64)})
    path, source = tmp_path / "mine.safetensors", model / "text_encoder" / "model.safetensors"
    shutil.copyfile(source, path)
    leaves_all(path, lambda: text_encoder.write_clip(path, {"x": np.zeros(2, np.float32)}))
    leaves_all(path, lambda: lora.write_lora(path, content, ledger, 1))
    leaves_all(path, lambda: lora.write_diff(path, content, ledger))
    leaves_all(path, lambda: into_single_file.write_checkpoint(path, source, content, ""))
    leaves_all(path, lambda: into_folder.write_copy(path, model, content, ledger, force=True))
    for name in ("edit.json", "model.safetensors.unedited"):
        mine = model / "text_encoder" / name
        mine.write_text("mine")
        leaves_all(mine, lambda: into_folder.apply(model, content, ledger, force=True))
        if name == "edit.json":
            leaves_all(mine, lambda: into_folder.undo(model, force=True))
        mine.unlink()
