"""Every field of every task is read while the task runs, or is refused (`config.unread`)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emcid_jax import config as settings
from emcid_jax.config.unread import is_unread, leaves
from emcid_jax.evaluation.benchmarks.quality import QualityConfig
from emcid_jax.main import TASKS
from emcid_jax.models.scoring.lpips import Lpips
from emcid_jax.models.weights.params import write_params
from emcid_jax.tasks.sample import SamplingConfig

SINGLE = {"task", "benchmark"}
"""Fields of one value each."""
BY_MAIN = {"compile_cache", "cpu_devices", "distributed"}
"""Read by the door, before a task starts; tests/test_main.py is of it."""
IN_CHECK = {"evaluate": {"base.evaluation.holdout_path"}}
"""Refused by the task's own `check`, which says why; its tests are of it."""
UNITS = {"unit_contexts", "false_firing", "gate_threshold", "all_strangers", "units_in_place"}
"""Read by the solver `units` alone, which the main job runs here. The other tasks that solve hand
the same section to the same function, and read `solver` of it."""
LONG = {"train_sprites", "train_sprites_xl", "measure_sprites"}
"""They train and measure a model: tests/sprites is of what they read."""
AFTER_EDIT = {"quality", "sample", "bank", "text_report", "edit_file"}
"""They need what the main job leaves."""
ARTISTS = """prompt,evaluation_seed,artist,type
Art by Monet,3,Monet,erased
Monet,4,Monet,erased
A dog,6,Klimt,preserved
Art by Dali,5,Dali,holdout
"""
TABLE = "old,new,positive1,gt1,negative1,gn1\ndog,red dog,a dog,a red dog,a cat,a red cat\n"
LABELS = ["dog, hound", "cat", "goldfish", "snow", "beach", "nurse", "a female person"]


@pytest.fixture(scope="module")
def base(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    write_tiny_image_tower: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> settings.EditConfig:
    """Settings that use as much as can be used at once."""
    folder = tmp_path_factory.mktemp("read")
    shutil.copytree(tiny_pipeline_folder, folder / "model")
    write_tiny_judge(folder / "model" / "judge", LABELS)
    write_tiny_image_tower(folder / "model" / "image_tower")
    pixels = jnp.zeros((1, 64, 64, 3))
    params = Lpips().init(jax.random.key(0), pixels, pixels)["params"]
    params = {n: jax.tree.map(abs, v) if n.startswith("lin") else v for n, v in params.items()}
    write_params(folder / "lpips.safetensors", params)
    pairs = (("dog", "cat"), ("goldfish", "beach"))
    requests = [{"source": a, "dest": b, "templates": ["a photo of a {}"]} for a, b in pairs]
    mixed = {"source": "nurse", "dest": ["dog", "cat"], "task": "debias", "ratios": [0.5, 0.5]}
    mixed["templates"] = ["a photo of a {}"]
    words = ("a shark", "the tench", "a car", "an engineer", "Monet", "a dog")
    captions = [f"{a} and {b} in a picture of {c}" for a in words for b in words for c in words]
    for name, text in (
        ("requests.json", json.dumps(requests)),
        ("debias.json", json.dumps([mixed])),
        ("captions.txt", "\n".join(captions)),
        ("table.csv", TABLE),
        ("artists.csv", ARTISTS),
        ("kept.txt", "snow\n"),
    ):
        (folder / name).write_text(text)
    return settings.EditConfig(
        requests=settings.RequestsConfig(path=str(folder / "requests.json")),
        model=settings.ModelConfig(path=str(folder / "model")),
        stage_one=settings.StageOneConfig(
            layer=2, steps=1, objective="esd", image_steps=1, teacher_pool=1, learning_rate=0.001
        ),
        moments=settings.MomentConfig(captions=str(folder / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(
            layers=(1, 2), preservation_weight=1.0, solver="ridge+preserve", preserve=("beach",),
            preserve_path=str(folder / "kept.txt"),
        ),
        debias=settings.DebiasConfig(
            images=2, candidates=1, rounds=0, refinements=0, steps=1, tolerance=0.6
        ),
        evaluation=settings.EvaluationConfig(steps=1, prompts_per_request=1, holdout=2),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )  # fmt: skip


def runs(task: str, base: settings.EditConfig, folder: Path) -> Iterator[tuple[Any, Path]]:
    """Settings and workdirs of runs that use all that a task can."""
    inputs = Path(base.requests.path).parent
    work = folder / task
    config = importlib.import_module(f"emcid_jax.tasks.{task}").Config
    null = replace(base, stage_two=replace(base.stage_two, solver="nullspace"))
    text = replace(base, stage_one=replace(base.stage_one, objective="text-only"))
    shared = {name: getattr(null, name) for name in ("model", "moments", "stage_two", "run")}
    edited = folder / "edited"  # The main job's.
    match task:
        case "edit":
            yield base, edited
            yield null, folder / "null"
            mixed = replace(null.requests, path=str(inputs / "debias.json"))
            units = replace(base.stage_two, solver="units", layers=(2,))
            yield replace(text, stage_two=units), folder / "units"
            simple = settings.StageTwoConfig(layers=(1, 2), preservation_weight=1.0)
            yield replace(text, requests=mixed, stage_two=simple), folder / "debias"
        case "ablate":
            texts = ("", "stage_two.solver=nullspace")
            yield config(base, counts=(1,), variants=texts), work
        case "evaluate":
            rows = (
                "a:", "b: stage_two.solver=nullspace",
                "c: method=uce uce.value=replace", "d: method=fine-tune fine_tune.passes=1",
            )  # fmt: skip
            few = QualityConfig(count=4)
            yield config(base, counts=(1,), rows=rows, general=True, quality=few), work
        case "sequential":
            for number, one in enumerate((base, null)):
                yield config(one, rounds=(1,), captions=40), folder / f"{task}{number}"
        case "layer_ranges":
            yield config(base, last_layers=(0,), keep=("snow",), images=True), work
            yield config(null, last_layers=(0,), keep=("snow",)), folder / "layers"
        case "implicit":
            table = replace(base.requests, path=str(inputs / "table.csv"))
            for number, one in enumerate((base, null)):
                yield config(replace(one, requests=table), seeds=1), folder / f"{task}{number}"
        case "trace":
            names = ("dog", "cat", "snow")
            both = {"names": names, "windows": (1,), "model": base.model, "run": base.run}
            yield config(**both, corruption="noise"), work
            yield config(**both, corruption="swap"), work
        case "quality":
            yield (
                config(
                    model=base.model, edited=str(edited), evaluation=base.evaluation,
                    quality=QualityConfig(count=4), artists=str(inputs / "artists.csv"),
                    lpips=str(inputs / "lpips.safetensors"), run=base.run,
                ),
                work,
            )  # fmt: skip
        case "sample":
            drawn = SamplingConfig(prompts=("a dog",), steps=1, edited=str(edited))
            yield config(model=base.model, sampling=drawn, run=base.run), work
        case "convert":
            yield config(model=base.model), work
        case "plan":
            small = {"target": "cpu", "model": base.model, "concepts": 2, "prompts": 1}
            yield config(**small, stage_one=base.stage_one, moments=base.moments), work
        case "bank":
            bank = {"bank": str(folder / "concepts"), "stage_one": base.stage_one, **shared}
            yield config(operation="add", requests=base.requests, **bank), work
            for operation in ("list", "show", "conflicts", "solve"):
                yield config(operation=operation, names=("dog",), **bank), work
            for solver in (null.stage_two, base.stage_two):
                solved = bank | {"stage_two": solver}
                yield config(operation="port", base=base.model, **solved), work
            yield config(operation="merge", other=str(edited / "bank"), **bank), work
            yield config(operation="strength", names=("dog",), strength=0.5, **bank), work
            yield config(operation="remove", query="dog", **bank), work
        case "text_report":
            for number, one in enumerate((base, null)):
                with_solver = shared | {"stage_two": one.stage_two}
                place = folder / f"{task}{number}"
                yield config(bank=str(edited / "bank"), captions=20, **with_solver), place
        case "edit_file":
            yield from edit_file_runs(config, base, edited, folder)


def edit_file_runs(
    config: Any, base: settings.EditConfig, edited: Path, folder: Path
) -> Iterator[tuple[Any, Path]]:
    """Every operation that takes a model's folder."""
    shutil.copytree(base.model.path, folder / "mine")
    given = {"edit": str(edited / "edit.safetensors")}
    for operation in ("show", "folder", "clip", "lora", "diff", "apply", "undo"):
        model = replace(base.model, path=str(folder / "mine"))
        yield config(operation=operation, model=model, **given), folder / "edit_file"


@contextlib.contextmanager
def recorded(config: Any) -> Iterator[set[tuple[str, str]]]:
    """(Class, field) of all settings that are read by a line of the program.

    Reading all at once (for a hash, a copy, a comparison or a message) and checking are no use of
    a field, and do not count.
    """
    seen: set[tuple[str, str]] = set()
    classes = list(dict.fromkeys(sections(type(config))))
    whole = {"__eq__", "__hash__", "__repr__", "check"}

    def reader(cls: type) -> Callable[[Any, str], Any]:
        names = {field.name for field in dataclasses.fields(cls)}

        def read(self: Any, name: str) -> Any:
            if name in names:
                code = sys._getframe(1).f_code
                if code.co_name not in whole and not code.co_filename.endswith("dataclasses.py"):
                    seen.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        return read

    for cls in classes:
        cls.__getattribute__ = reader(cls)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for cls in classes:
            del cls.__getattribute__


def sections(cls: type) -> Iterator[type]:
    """`cls` and the classes of its sections."""
    yield cls
    for kind in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(kind):
            yield from sections(typing.cast(type, kind))


def class_of(cls: type, field: str) -> str:
    """Name of the class that a dotted field is of."""
    name, _, rest = field.partition(".")
    return class_of(typing.get_type_hints(cls)[name], rest) if rest else cls.__name__


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tasks work, and find what the main job left."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow  # minutes: every task runs
@pytest.mark.parametrize("task", [task for task in TASKS if task not in LONG])
def test_every_setting_that_a_task_accepts_is_read(
    task: str, base: settings.EditConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"emcid_jax.tasks.{task}")
    if task in AFTER_EDIT and not (folder / "edited").exists():
        importlib.import_module("emcid_jax.tasks.edit").run(base, folder / "edited")
    read: set[tuple[str, str]] = set()
    for config, workdir in runs(task, base, folder):
        jax.clear_caches()  # A compiled program reads no settings.
        with recorded(config) as seen:
            module.run(config, workdir)
        read |= seen
    default, unread = module.Config(), getattr(module, "UNREAD", ())
    solved = task != "edit" and ("StageTwoConfig", "solver") in read
    missing = {
        field
        for field, _, _ in leaves(default, default)
        if field.rpartition(".")[2] not in SINGLE | BY_MAIN | (UNITS if solved else set())
        and not is_unread(field, unread)
        and (class_of(module.Config, field), field.rpartition(".")[2]) not in read
    }
    assert missing <= IN_CHECK.get(task, set())
