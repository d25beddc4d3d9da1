"""The task `plan`: figures against what the programs are, for this machine, a GPU and a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from emcid_jax.config import ModelConfig, MomentConfig, StageOneConfig
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch
from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.planning import traced_programs
from emcid_jax.planning.machines import find_target
from emcid_jax.runtime import parallel, program_cost
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import plan
from emcid_jax.tasks.plan import PlanConfig

ROOT = Path(__file__).parents[2]


def config_for(folder: Path, **changes: Any) -> PlanConfig:
    config = PlanConfig(
        target="cpu",
        model=ModelConfig(path=str(folder)),
        concepts=20,
        prompts=2,
        utilisation=0.5,
        stage_one=StageOneConfig(layer=2, steps=5, image_steps=3),
        moments=MomentConfig(count=1000, batch=64),
    )
    return dataclasses.replace(config, **changes)


def test_what_a_concept_and_a_step_cost(tiny_pipeline_folder: Path) -> None:
    """Against the program of exactly so many steps, with and without a pool."""
    pipeline = abstract_pipeline(tiny_pipeline_folder)
    mesh = parallel.make_mesh(jax.devices()[:1])
    for pool in (0, 2, 100):
        settings = StageOneConfig(layer=2, steps=5, teacher_pool=pool)
        config = config_for(tiny_pipeline_folder, stage_one=settings)
        whole, step = plan.stage_one_cost(pipeline, config)
        inputs = traced_programs.stage_one_inputs(pipeline, 1, 2, settings)
        traced = stage_one.trace(pipeline, inputs, settings, mesh, ConceptBatch(1))
        wanted = program_cost.cost(traced.jaxpr.jaxpr)
        assert whole.flops == pytest.approx(wanted.flops, rel=1e-9)
        assert whole.bytes == pytest.approx(wanted.bytes, rel=1e-9)
        assert 0 < step.flops < whole.flops / 5
        results = jax.tree.leaves(traced.out_info)
        assert plan.result_bytes(inputs, settings) == sum(4 * one.size for one in results)


def test_a_plan_for_this_machine(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tiny_pipeline_folder)
    plan.run(config, tmp_path)
    shown = capsys.readouterr().out.splitlines()
    made = json.loads((tmp_path / "plan.json").read_text())
    parts = {part["name"]: part for part in made["parts"]}
    assert list(parts) == ["stage_one", "images", "moments"]
    for part in parts.values():
        assert part["fits"]
        assert part["collectives"] == {}
        assert part["compile_seconds"] > 0
    assert parts["images"]["count"] == 40

    # The batch is the one that a real run takes, and so is its memory.
    pipeline = abstract_pipeline(tiny_pipeline_folder)
    inputs = traced_programs.stage_one_inputs(pipeline, 20, 2, config.stage_one)
    mesh = parallel.make_mesh(jax.devices()[:1])
    program = stage_one.compile_program(pipeline, inputs, config.stage_one, mesh)
    assert parts["stage_one"]["batch"] == program.batch.concepts == 20
    assert parts["stage_one"]["bytes_needed"] == program.bytes_per_device

    whole, _ = plan.stage_one_cost(pipeline, config)
    chip = find_target("cpu").chip
    seconds = max(
        20 * whole.flops / (0.5 * chip.flops["float32"]), 20 * whole.bytes / chip.bandwidth
    )
    assert parts["stage_one"]["seconds"] == pytest.approx(seconds)
    assert made["seconds"] == pytest.approx(sum(part["seconds"] for part in parts.values()))

    # The estimate for a GPU is of the size that the compiler says.
    plan.run(config_for(tiny_pipeline_folder, target="h200", parts=("stage_one",)), tmp_path)
    (counted,) = json.loads((tmp_path / "plan.json").read_text())["parts"]
    assert 0.5 < counted["bytes_needed"] / program.bytes_per_device < 2

    assert "float32, on cpu: 1 x" in shown[0]
    assert shown[1].split() == ["Stage", "I", "images", "moments"]
    assert [line.split()[-1] for line in shown if line.startswith("collectives")] == ["none"]
    assert "compiled programs" in shown[-1]


def test_a_plan_for_a_gpu_is_counted(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run(config_for(tiny_pipeline_folder, target="h200"), tmp_path)
    shown = capsys.readouterr().out
    parts = json.loads((tmp_path / "plan.json").read_text())["parts"]
    assert [part["collectives"] for part in parts] == [None] * 3
    assert parts[0]["batch"] == 20
    assert "nothing compiled" in shown


def test_a_plan_for_two_encoders_and_a_unet_of_half_the_size(
    tiny_xl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for storage in ("float32", "bfloat16"):
        config = config_for(
            tiny_xl_folder,
            target="h200",
            parts=("stage_one", "moments"),
            model=ModelConfig(str(tiny_xl_folder), dtype="bfloat16", unet_storage=storage),
            stage_one=StageOneConfig(layer=2, second_layer=1, steps=5, concept_batch=4),
        )
        plan.run(config, tmp_path)
        found[storage] = json.loads((tmp_path / "plan.json").read_text())["parts"]
    _, first, second = found["float32"]
    assert [part["encoder"] for part in (first, second)] == ["text_encoder", "text_encoder_2"]
    assert first["flops"] != second["flops"]
    title = "".join(capsys.readouterr().out.splitlines()[1].split())
    assert title == "StageImomentstext_encodermomentstext_encoder_2"
    unet = abstract_pipeline(tiny_xl_folder).params["unet"]
    saved = found["float32"][0]["bytes_needed"] - found["bfloat16"][0]["bytes_needed"]
    count = sum(leaf.size for leaf in jax.tree.leaves(unet))
    # Computing in bfloat16 keeps a copy of float32 weights, and none of those held so.
    assert 2 * count < saved < 4.2 * count


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [aot]")
def test_a_plan_for_tpus(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, for libtpu reads its environment once. No loop communicates."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "emcid_jax.main", "--config=configs/plan.py"),
            *("--config.target=v5e:2x4", f"--config.model.path={tiny_pipeline_folder}"),
            *("--config.stage_one.layer=2", "--config.stage_one.steps=5", "--config.prompts=1"),
            *("--config.concepts=8", "--config.parts=('stage_one','moments')"),
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stage_one_part, moments = json.loads((tmp_path / "plan.json").read_text())["parts"]
    assert stage_one_part["batch"] == 8
    assert stage_one_part["collectives"] == {}
    assert moments["collectives"] == {}
    assert 0 < stage_one_part["bytes_needed"] < stage_one_part["bytes_available"]
    assert "at effort -1" in done.stdout


def test_without_libtpu_the_extra_is_named(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    config = config_for(tiny_pipeline_folder, target="v5e:2x4")
    with pytest.raises(UserError, match=r'pip install "emcid_jax\[aot\]"'):
        plan.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "v9"}, r"config\.target is 'v9'.*not known"),
        ({"parts": ()}, r"config\.parts is empty"),
        (
            {"target": "h200", "weight_shards": 8},
            r"config\.weight_shards is 8, but config\.target 'h200' has 1 device; give",
        ),
        ({"target": "cpu", "weight_shards": 2}, r"config\.weight_shards is 2.*'cpu' has 1 device;"),
        ({"weight_shards": 3}, r"config\.weight_shards is 3.*'v5e:2x4' has 8 devices;"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PlanConfig(), **changes).check()


def test_a_layer_the_model_does_not_have_is_refused(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_pipeline_folder, stage_one=StageOneConfig(layer=10))
    with pytest.raises(UserError, match=r"config\.stage_one\.layer is 10.*blocks 0 to 3"):
        plan.run(config, tmp_path / "run")


def test_a_compilers_failure_is_one_line(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic\nsays no")

    monkeypatch.setattr(stage_one, "compile_program", fails)
    with pytest.raises(
        UserError, match=r"target cpu: stage_one does not compile: INTERNAL: Mosaic says no"
    ):
        plan.run(config_for(tiny_pipeline_folder), tmp_path)
