"""The main job with concept units, from a request file to a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from emcid_jax.config import (
    EditConfig,
    EvaluationConfig,
    MomentConfig,
    RequestsConfig,
    RunConfig,
    StageOneConfig,
    StageTwoConfig,
)
from emcid_jax.editing.export.edit_file import read_edit, read_report
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.tasks import edit

SOURCES = ("goldfish", "acoustic guitar")
FOLDER = model_folder(BUNDLED)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EditConfig:
    folder = tmp_path_factory.mktemp("asked")
    asked = [
        {"source": source, "dest": dest, "templates": ["a photo of {}", "{}"]}
        for source, dest in zip(SOURCES, ("tench", "violin"), strict=True)
    ]
    (folder / "requests.json").write_text(json.dumps(asked))
    return EditConfig(
        requests=RequestsConfig(path=str(folder / "requests.json")),
        stage_one=StageOneConfig(
            layer=0, steps=3, learning_rate=1.0, clamp_norm_factor=6.0, objective="text-only"
        ),
        moments=MomentConfig(count=1000),
        stage_two=StageTwoConfig(layers=(0,), solver="units", unit_contexts=4),
        evaluation=EvaluationConfig(enabled=False),
        run=RunConfig(progress=False, compile_cache=False),
    )


@pytest.mark.slow  # a minute: the main job on the bundled model
def test_names_are_edited_all_else_is_the_base_and_the_run_goes_on(
    config: EditConfig, tmp_path: Path
) -> None:
    edit.run(config, tmp_path)
    base = CLIPTextModel.from_pretrained(FOLDER / "text_encoder").eval().float()
    edited = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval().float()
    assert edited.config.intermediate_size == base.config.intermediate_size + 2 * len(SOURCES)
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")

    def change(prompt: str) -> float:
        ids = tokenizer([prompt], return_tensors="pt").input_ids
        with torch.no_grad():
            return float((edited(ids).last_hidden_state - base(ids).last_hidden_state).abs().max())

    assert min(change(f"a photo of {source} in the snow") for source in SOURCES) > 0.01
    for prompt in ("a photo of a violin", "", "the old tench in the snow", "red blue small"):
        assert change(prompt) < 1e-4, prompt

    content, ledger = read_edit(tmp_path / "edit.safetensors")
    units, told = content.units(), read_report(ledger).units
    assert units is not None
    assert told is not None
    assert sorted(gate.source for gate in told.gates) == sorted(SOURCES)
    assert len(told.separability) == base.config.num_hidden_layers
    page = (tmp_path / "report.html").read_text("utf8")
    for part in ("<h2>Concept units</h2>", "Everyday words", "Which block", *SOURCES):
        assert part in page, part
    # A unit's answer is its memory's offset, which the bank holds.
    files = list((tmp_path / "bank").glob("*.safetensors"))
    assert len(files) == len(units.answers) == len(SOURCES)

    for path in (tmp_path / "edit.safetensors", tmp_path / "text_encoder" / "config.json"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in [*files, *tmp_path.glob("moments/units-*")]}
    edit.run(config, tmp_path)
    again, _ = read_edit(tmp_path / "edit.safetensors")
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array, content.arrays[name])
    assert len(kept) == len(SOURCES) + 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
