"""The script for accelerators, on a model that a CPU runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from emcid_jax.pipelines.pipeline import conditioning_shapes, load_pipeline


def test_every_part_is_timed_and_counted(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    sizes = ("--concepts=1", "--images=2", "--captions=4")
    options = (f"--model={tiny_pipeline_folder}", "--dtype=float32", f"--output={output}")
    assert accelerator.main([*options, *sizes]) == 0
    found = json.loads(output.read_text())
    assert found["skipped"] == []
    parts = {part["name"]: part for part in found["parts"]}
    assert [part["count"] for part in parts.values()] == [10, 2, 2, 2, 2, 4, 1000]
    assert all(part["seconds"] > 0 for part in parts.values())
    for name in (accelerator.FORWARD, accelerator.BACKWARD):
        assert parts[name]["torch_seconds"] > 0

    # XLA counts more than products, and no less.
    pipeline = load_pipeline(tiny_pipeline_folder)
    latents = jax.ShapeDtypeStruct((2, *pipeline.latent_size), jnp.float32)
    times = jax.ShapeDtypeStruct((2,), jnp.int32)
    variables = {"params": pipeline.params["unet"]}
    text = conditioning_shapes(pipeline, 2)
    lowered = jax.jit(pipeline.unet.apply).lower(variables, latents, times, *text)
    analysis = lowered.cost_analysis()
    assert analysis is not None
    flops = analysis["flops"]
    assert 0.7 * flops < parts[accelerator.FORWARD]["flops"] < flops
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(parts)


def test_what_there_is_no_time_for_is_named(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    options = [f"--model={tiny_pipeline_folder}", "--minutes=0", f"--output={output}"]
    assert accelerator.main(options) == 0
    assert "no time was left for Stage I, UNet," in capsys.readouterr().out
    assert not output.exists()


def test_a_device_is_known_by_how_its_kind_begins() -> None:
    peaks = {kind: accelerator._peak(kind, "bfloat16") for kind in ("TPU v5 lite", "TPU v5p")}
    assert peaks == {"TPU v5 lite": 197e12, "TPU v5p": 459e12}
    assert accelerator._peak("NVIDIA H200 NVL", "float32") == 494e12
    assert accelerator._peak("cpu", "bfloat16") is None
