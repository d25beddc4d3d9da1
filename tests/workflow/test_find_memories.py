"""Chunks of Stage I: as few as can be, none nearly empty; a resumed run computes as the first."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import RunConfig, StageOneConfig
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch
from emcid_jax.pipelines.abstract import abstract_pipeline
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import even_chunk, make_mesh
from emcid_jax.workflow.find_memories import (
    earlier_batch,
    find_memories,
    images_at_once,
    read_prompts,
    tell_of_poor,
    without_padding,
)
from emcid_jax.workflow.workdir import Log, Run, running


def quiet(workdir: Path) -> Run:
    return Run(RunConfig(progress=False), workdir, Log(workdir / "log.jsonl"), make_mesh())


@given(st.integers(1, 500), st.integers(1, 64))
def test_chunks_are_as_few_as_can_be_and_waste_least(count: int, most: int) -> None:
    size = even_chunk(count, most)
    chunks = math.ceil(count / most)
    assert 1 <= size <= most
    assert math.ceil(count / size) == chunks
    # One compiled program serves all chunks, so the places it leaves empty are work lost.
    assert size * chunks - count < chunks


@pytest.mark.parametrize(("count", "most", "size"), [(25, 16, 13), (300, 16, 16), (5, 2, 2)])
def test_examples(count: int, most: int, size: int) -> None:
    assert even_chunk(count, most) == size


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, ConceptBatch(8, True)),
        ({"chunk": 15}, None),
        ({"devices": 2}, None),
        ({"concept_batch": 4}, None),
    ],
)
def test_the_batch_of_the_same_run_is_taken_again(
    changed: dict[str, int], wanted: ConceptBatch | None
) -> None:
    asked = {"chunk": 16, "devices": 1, "concept_batch": 0}
    filed = json.loads(json.dumps(asked | {"batch": ConceptBatch(8, True)}))
    assert earlier_batch([{}, filed, {}], asked | changed) == wanted


def test_memories_that_keep_most_of_their_loss_are_named(caplog: pytest.LogCaptureFixture) -> None:
    def memory(left: float) -> bank.Memory:
        point, start = np.zeros(2, np.float32), np.array([4, 1, 3, 0], np.float32)
        return bank.Memory(point, point, np.zeros(1, np.float32), start, start * left)

    requests = [EditRequest(f"name {i}", "cat", ("{}",)) for i in range(10)]
    tell_of_poor(requests[:2], [memory(0.0), memory(0.5)])
    assert not caplog.text
    tell_of_poor(requests, [memory(0.1 * i) for i in range(9)] + [memory(0.52)])
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith("4 of 10 memories keep more than 50 % of their held-out loss")
    assert "'name 8' (80%), 'name 7' (70%), 'name 6' (60%), 'name 9' (52%); more steps" in told


@pytest.mark.parametrize("count", [1, 4])
def test_memories_by_text_alone_need_no_padding(
    count: int, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    requests = [
        EditRequest("a dog", "a cat", ("a photo of {}", "{}"), seed=3),
        EditRequest("the city", "a long way to the beach", ("{}",), seed=4),
    ]
    config = StageOneConfig(layer=1, steps=4, objective="text-only", edited_tokens=count)
    prompts = read_prompts(pipeline, requests, config)
    end = pipeline.encoder.tokenizer.eos_token_id
    full = prompts.source.ids.shape[-1]
    rows = np.concatenate([part.ids.reshape(-1, full) for part in prompts])
    longest = max(row.tolist().index(end) for row in rows)
    width = without_padding(prompts, end, config).source.ids.shape[-1]
    assert longest + max(count - 1, 1) <= width < longest + max(count - 1, 1) + 4 < full

    found = find_memories(
        pipeline, requests, prompts, config, bank.model_hashes(pipeline), tmp_path / "bank",
        quiet(tmp_path),
    )  # fmt: skip
    inputs = preparation.prepare(pipeline, *prompts, [3, 4], None, config)
    wanted = run.optimise(pipeline, inputs, config, make_mesh())
    assert inputs.encoders["text_encoder"].hidden.shape[2] == full
    np.testing.assert_allclose([memory.z for memory in found], wanted.z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([memory.curve for memory in found], wanted.curve, rtol=1e-4)


def test_settings_of_an_ablation_must_fit_the_prompts_too(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    requests = [EditRequest("a dog", "a cat", ("a photo of {}",), origin="a.csv:1")]
    config = StageOneConfig(layer=1, objective="text-only")
    prompts = read_prompts(pipeline, requests, config)
    varied = dataclasses.replace(config, edited_tokens=prompts.source.ids.shape[-1])
    with pytest.raises(UserError, match=r"a.csv:1: a prompt has .* lower stage_one.edited_tokens"):
        find_memories(pipeline, requests, prompts, varied, {}, tmp_path / "bank", quiet(tmp_path))
    assert not (tmp_path / "bank").exists()


def test_training_images_of_more_pixels_are_drawn_fewer_at_once() -> None:
    sizes = {"sd-1.4": 16, "sd-2.1": 7, "sdxl-base": 4}  # 512, 768 and 1,024 pixels.
    for name, images in sizes.items():
        assert images_at_once(abstract_pipeline(name)) == images


def test_a_machine_that_is_gone_loses_the_chunk_in_flight(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    names = ("dog", "cat", "snow", "tench", "shark")
    requests = [EditRequest(name, "a beach", ("{}",), seed=3) for name in names]
    stage_one = StageOneConfig(layer=1, steps=2, objective="text-only")
    prompts, model = read_prompts(pipeline, requests, stage_one), bank.model_hashes(pipeline)
    config = RunConfig(progress=False, save_every=2)
    mirrored = dataclasses.replace(config, mirror=f"file://{tmp_path}/mirror")
    write, computed = bank.write, 0

    def found(workdir: Path, config: RunConfig = mirrored) -> list[bank.Memory]:
        with running(config, workdir, ("bank", "metrics.jsonl")) as run:
            return find_memories(
                pipeline, requests, prompts, stage_one, model, workdir / "bank", run
            )

    def counted(*arguments: Any, gone: int = 0) -> None:
        nonlocal computed
        computed += 1
        write(*arguments)
        if computed == gone:
            raise KeyboardInterrupt

    monkeypatch.setattr(bank, "write", functools.partial(counted, gone=3))
    with pytest.raises(KeyboardInterrupt):  # Within the second chunk of three.
        found(tmp_path / "first")
    computed = 0
    monkeypatch.setattr(bank, "write", counted)
    again = found(tmp_path / "second")
    assert computed == 3
    for one, wanted in zip(again, found(tmp_path / "whole", config), strict=True):
        np.testing.assert_array_equal(one.z, wanted.z)
        np.testing.assert_array_equal(one.curve, wanted.curve)
