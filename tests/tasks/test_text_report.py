"""The task `text_report` on the tiny model: JSON and HTML, the same from kept moments."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import Concept
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.text_report import TextReportConfig, run
from emcid_jax.workflow.inputs import names_to_keep

WORDS = ["a dog", "the snow", "a doctor", "the city", "art"]


@pytest.fixture
def config(tiny_pipeline_folder: Path, tmp_path: Path) -> TextReportConfig:
    captions = [f"{a} and {b} in a picture of {c}" for a in WORDS for b in WORDS for c in WORDS]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    (tmp_path / "names.txt").write_text("cat\n\nbeach \ndog\n")
    rng = np.random.default_rng(0)
    model = memories.model_hashes(load_pipeline(tiny_pipeline_folder))
    folder, concepts = tmp_path / "bank", []
    for name in ("dog", "snow"):
        request = EditRequest(name, "goldfish", ("a photo of {}",))
        about = memories.provenance(request, settings.StageOneConfig(layer=2), model)
        none = np.zeros(4, np.float32)
        z, delta = rng.standard_normal((2, 32)).astype(np.float32)
        memories.write(folder, about, Memory(z, delta, none, none, none), {})
        concepts.append(Concept(request, memories.key(about)))
    concept_bank.add(folder, concepts)
    return TextReportConfig(
        bank=str(folder),
        keep=("nurse",),
        keep_path=str(tmp_path / "names.txt"),
        captions=20,
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=10.0),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )


def test_report(
    config: TextReportConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, tmp_path / "out")
    assert "2 concepts, distance to the targets" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "text_report.json").read_text())
    assert {one["source"] for one in found["reached"]} == {"dog", "snow"}
    assert {one["name"] for one in found["kept"]} == {"nurse", "cat", "beach"}
    assert found["captions"]["apart"]["count"] + found["captions"]["naming"]["count"] == 20
    assert [one["layer"] for one in found["layers"]] == [1, 2]
    left = [one["left"] for one in found["reached"]]
    assert found["distance"]["after"] == pytest.approx(
        np.sqrt(np.mean([(one["left"] * one["asked"]) ** 2 for one in found["reached"]])), rel=1e-3
    )
    assert left == sorted(left, reverse=True)
    assert f"{left[0]:.3f}" in (tmp_path / "out" / "text_report.html").read_text()
    (moments,) = (tmp_path / "out").rglob("second_moments.safetensors")
    run(dataclasses.replace(config, moments_file=str(moments)), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "text_report.json").read_text()) == found


def test_mistakes_are_named(config: TextReportConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.bank is empty"):
        TextReportConfig().check()
    with pytest.raises(UserError, match=r"config\.keep_path is .*no\.txt"):
        run(dataclasses.replace(config, keep_path=str(tmp_path / "no.txt")), tmp_path / "out")
    with pytest.raises(UserError, match="is no concept bank"):
        run(dataclasses.replace(config, bank=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sprites = names_to_keep(("nurse",), "sprites", "config.keep_path")
    assert sprites[0] == "nurse"
    assert len(sprites) == 1001
