"""Every sweep: killed and run again, run with other settings, and on another model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax import config as settings
from emcid_jax.tasks import ablate, evaluate, implicit, layer_ranges, sequential, trace
from emcid_jax.workflow import edit_job

TABLE = "old,new,positive1,gt1,negative1,gn1\ndog,red dog,a dog,a red dog,a cat,a red cat\n"


@pytest.fixture
def base(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    write_tiny_image_tower: Callable[[Path], None],
    tmp_path: Path,
) -> settings.EditConfig:
    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, model)
    write_tiny_judge(model / "judge", ["dog, hound", "cat", "goldfish", "snow", "beach"])
    write_tiny_image_tower(model / "image_tower")
    pairs = (("dog", "cat"), ("goldfish", "beach"))
    requests = [{"source": a, "dest": b, "templates": ["a photo of a {}"]} for a, b in pairs]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    (tmp_path / "table.csv").write_text(TABLE)
    words = ("a shark", "the tench", "a car", "an engineer", "Monet", "a dog")
    (tmp_path / "captions.txt").write_text(
        "\n".join(f"{a} and {b} in a picture of {c}" for a in words for b in words for c in words)
    )
    return settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "requests.json")),
        model=settings.ModelConfig(path=str(model)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=1.0),
        evaluation=settings.EvaluationConfig(steps=1, prompts_per_request=1, holdout=2),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


def sweep(name: str, base: settings.EditConfig) -> Any:
    """The task's module and settings with which its table has three rows or more."""
    path = str(Path(base.requests.path).with_name("table.csv"))
    edits = dataclasses.replace(base, requests=settings.RequestsConfig(path=path))
    texts = ("", "stage_two.preservation_weight=2.")
    return {
        "ablate": (ablate, ablate.Config(base, counts=(1, 2), variants=texts)),
        "evaluate": (evaluate, evaluate.Config(base, counts=(1, 2), rows=("a:", "b: keep=True"))),
        "sequential": (sequential, sequential.Config(base, rounds=(1, 2), captions=40)),
        "layer_ranges": (
            layer_ranges,
            layer_ranges.Config(base, last_layers=(0, 1), keep=("snow",)),
        ),
        "trace": (
            trace,
            trace.Config(
                names=("dog", "snow", "cat"), sites=("block",), windows=(2,),
                model=base.model, run=base.run,
            ),
        ),
        "implicit": (implicit, implicit.Config(edits, seeds=3)),
    }[name]  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry per measured row; entry 0, while it is there, is the number of rows before a kill.

    What is measured, and what is made of the table, is taken out: other tests are of that.
    """
    made: list[Any] = []

    def measure(*arguments: Any, **_: Any) -> dict[str, Any]:
        if made and isinstance(made[0], int) and len(made) > made[0]:
            raise KeyboardInterrupt
        made.append(arguments)
        return {"figure": len(made)}

    def nothing(*_: Any, **__: Any) -> Any:
        return ""

    for module in (ablate, evaluate, layer_ranges, trace):
        monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(sequential, "_row", measure)
    monkeypatch.setattr(implicit, "_Bench", lambda *_: SimpleNamespace(measure=measure))
    monkeypatch.setattr(edit_job, "find_moments_of", lambda *_: {"text_encoder": None})
    monkeypatch.setattr(sequential, "moments_of", nothing)
    found = lambda job, _: [None] * len(job.requests)  # noqa: E731
    monkeypatch.setattr(edit_job, "find_memories_of", found)
    for module in (ablate, sequential, layer_ranges, trace, implicit):
        monkeypatch.setattr(module, "as_markdown", nothing)
    for module in (layer_ranges, trace):
        monkeypatch.setattr(module, "panels", nothing)
        monkeypatch.setattr(module, "heat_maps", lambda *_: b"")
    for name in ("write", "_report"):
        monkeypatch.setattr(evaluate, name, nothing)
    for name in ("score", "row_table"):
        monkeypatch.setattr(implicit, name, nothing)
    return made


@pytest.mark.parametrize(
    "name", ["ablate", "evaluate", "sequential", "layer_ranges", "trace", "implicit"]
)
def test_a_row_is_measured_once_per_all_that_decides_it(
    name: str, base: settings.EditConfig, measured: list[Any], tmp_path: Path
) -> None:
    module, config = sweep(name, base)
    workdir = tmp_path / "out"

    def rows(config: Any) -> int:
        """How many rows a run measures."""
        measured.clear()
        module.run(config, workdir)
        return len(measured)

    measured.append(2)  # Killed at the third row.
    with pytest.raises(KeyboardInterrupt):
        module.run(config, workdir)
    (file,) = (path for path in workdir.glob("*.json") if "rows" in json.loads(path.read_text()))
    kept = json.loads(file.read_text())["rows"]
    assert len(kept) == 2
    left = rows(config)
    assert left >= 1
    every = 2 + left
    assert json.loads(file.read_text())["rows"][:2] == kept
    assert rows(config) == 0

    # Another setting (the case: `stage_one.steps`).
    if name == "trace":
        other = dataclasses.replace(config, noise=1.0)
    else:
        steps = dataclasses.replace(config.base.stage_one, steps=3)
        other = dataclasses.replace(config, base=dataclasses.replace(config.base, stage_one=steps))
    assert rows(other) == every
    assert all(row["figure"] <= every for row in json.loads(file.read_text())["rows"])

    # Another content under the same name: a weight of the model.
    weights = Path(base.model.path) / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(weights)
    save_file(arrays | {"conv_in.bias": arrays["conv_in.bias"] + np.float32(1)}, weights)
    assert rows(other) == every
