"""The concept bank: an edit depends on what is in it, not on how it got there; damage is named."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig, StageTwoConfig
from emcid_jax.editing.bank import choice
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import Concept, open_bank, read_list
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import files

LAYERS = (1, 2)
BLOCK = StageOneConfig(layer=2)
CONFIG = StageTwoConfig(layers=LAYERS, preservation_weight=0.5)
TEMPLATES = ("A photo of {}", "{}")
NAMES = ["dog", "great white shark", "snow", "nurse", "tench", "beach"]
REQUESTS = [
    EditRequest(name, "a goldfish", TEMPLATES, seed=i, weight=1.0 + i, source_id=i)
    for i, name in enumerate(NAMES)
]
MODEL = {"text_encoder": "t", "unet": "u", "tokenizer": "k"}
ROOT = Path(__file__).parents[3]


def memory(seed: int, dim: int = 32) -> Memory:
    rng = np.random.default_rng(seed)
    return Memory(*(rng.standard_normal(n).astype(np.float32) for n in (dim, dim, 5, 4, 4)))


def file(
    folder: Path, requests: Sequence[EditRequest], model: dict[str, str] = MODEL
) -> list[Concept]:
    """Their memories, filed in `folder`; what Stage I would find is a function of the request."""
    concepts = []
    for request in requests:
        about = bank.provenance(request, BLOCK, model)
        bank.write(folder, about, memory(request.seed), {"concept_batch": 1})
        concepts.append(Concept(request, bank.key(about)))
    return concepts


def filled(folder: Path, requests: Sequence[EditRequest], model: dict[str, str] = MODEL) -> Path:
    concept_bank.add(folder, file(folder, requests, model))
    return folder


def sources(concepts: Sequence[Concept]) -> set[str]:
    return {concept.request.source for concept in concepts}


# What is solved


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def moments(pipeline: Pipeline) -> SecondMoments:
    rng = np.random.default_rng(0)
    samples = {layer: 0.3 * rng.standard_normal((400, 64)) for layer in LAYERS}
    about = MomentProvenance(params_hash(pipeline.params["text_encoder"]), "", 1, LAYERS)
    return SecondMoments({layer: k.T @ k / len(k) for layer, k in samples.items()}, 400, about)


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> dict[str, str]:
    return bank.model_hashes(pipeline)


@pytest.fixture(scope="module")
def weights(pipeline: Pipeline, moments: SecondMoments) -> Callable[[Path], dict[int, np.ndarray]]:
    given = {"text_encoder": moments}

    def solve(folder: Path) -> dict[int, np.ndarray]:
        return bank_solve.solve(open_bank(folder), pipeline, given, CONFIG)["text_encoder"].deltas

    return solve


def require_same_bits(found: dict[int, np.ndarray], wanted: dict[int, np.ndarray]) -> None:
    assert set(found) == set(wanted) == set(LAYERS)
    for layer, delta in wanted.items():
        assert np.abs(delta).max() > 0
        np.testing.assert_array_equal(found[layer], delta)


def test_no_trace_of_the_way_a_bank_was_made_is_in_the_weights(
    weights: Callable[[Path], dict[int, np.ndarray]], model: dict[str, str], tmp_path: Path
) -> None:
    wanted = weights(filled(tmp_path / "at once", REQUESTS[:5], model))

    one_by_one = tmp_path / "one by one"
    for request in reversed(REQUESTS[:5]):
        filled(one_by_one, [request], model)
    require_same_bits(weights(one_by_one), wanted)

    removed = filled(tmp_path / "removed", REQUESTS, model)
    concept_bank.remove(removed, choice.select(read_list(removed), ["Beach"]))
    assert sources(read_list(removed)) == set(NAMES[:5])
    require_same_bits(weights(removed), wanted)

    merged = filled(tmp_path / "merged", REQUESTS[:3], model)
    concept_bank.merge(merged, filled(tmp_path / "other", REQUESTS[2:5], model))
    require_same_bits(weights(merged), wanted)

    off = filled(tmp_path / "off", REQUESTS, model)
    concept_bank.set_strength(off, choice.select(read_list(off), ["beach"]), 0.0)
    assert len(read_list(off)) == 6
    require_same_bits(weights(off), wanted)

    with_all = weights(filled(tmp_path / "all", REQUESTS, model))
    assert all(np.abs(with_all[layer] - wanted[layer]).max() > 1e-3 for layer in LAYERS)


def test_solve_is_stage_two_on_the_requests_with_targets_at_their_strength(
    pipeline: Pipeline,
    moments: SecondMoments,
    weights: Callable[[Path], dict[int, np.ndarray]],
    model: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = filled(tmp_path, REQUESTS, model)
    concept_bank.set_strength(folder, choice.select(read_list(folder), ["dog"]), 0.25)
    memories = [memory(request.seed) for request in REQUESTS]
    targets = np.array([m.z for m in memories], np.float64)
    targets[0] = (memories[0].z - memories[0].delta) + 0.25 * memories[0].delta
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, REQUESTS)
    wanted = stage_two.solve(
        pipeline.encoder.model,
        pipeline.params["text_encoder"],
        targets,
        SourcePrompts(*prompts),
        moments,
        CONFIG,
        block=2,
        weights=np.array([request.weight for request in REQUESTS]),
    ).deltas
    for layer, delta in weights(folder).items():
        error = np.linalg.norm(delta - wanted[layer]) / np.linalg.norm(wanted[layer])
        assert error < 1e-6


def test_memories_of_another_base_or_block_are_refused(
    pipeline: Pipeline, moments: SecondMoments, model: dict[str, str], tmp_path: Path
) -> None:
    other = filled(tmp_path / "base", REQUESTS[:2], model | {"text_encoder": "other"})
    with pytest.raises(UserError, match=r"2 memories.*'(dog|great white shark)'.*text_encoder"):
        bank_solve.solve(open_bank(other), pipeline, {"text_encoder": moments}, CONFIG)
    mixed = filled(tmp_path / "blocks", REQUESTS[:2], model)
    about = bank.provenance(REQUESTS[2], StageOneConfig(layer=1), model)
    bank.write(mixed, about, memory(2), {})
    concept_bank.add(mixed, [Concept(REQUESTS[2], bank.key(about))])
    with pytest.raises(UserError, match=r"blocks \[1, 2\]"):
        bank_solve.solve(open_bank(mixed), pipeline, {"text_encoder": moments}, CONFIG)
    off = filled(tmp_path / "off", REQUESTS[:2], model)
    concept_bank.set_strength(off, read_list(off), 0.0)
    with pytest.raises(UserError, match="no concept of strength > 0"):
        bank_solve.solve(open_bank(off), pipeline, {"text_encoder": moments}, CONFIG)


# What is on disk


def test_a_bank_comes_back_as_it_was_written(tmp_path: Path) -> None:
    request = EditRequest(
        "nürse",
        ("male nurse", "female nurse"),
        TEMPLATES,
        task="debias",
        seed=9,
        ratios=(0.25, 0.75),
        seeds=(1, 2),
        validation_templates=("my {}", "a {}"),
        image_paths=("a.png", "b.png"),
    )
    concepts = concept_bank.add(tmp_path, file(tmp_path, [request, *REQUESTS]))
    found = open_bank(tmp_path)
    assert found.concepts == concepts
    assert [c.memory for c in concepts] == sorted(c.memory for c in concepts)
    assert {c.request for c in concepts} == {request, *REQUESTS}
    for concept in concepts:
        record = found.records[concept.memory]
        assert bank.key(record.provenance) == concept.memory
        np.testing.assert_array_equal(record.memory.z, memory(concept.request.seed).z)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_flipped_byte_is_found_and_its_file_named(tmp_path: Path) -> None:
    concepts = read_list(filled(tmp_path, REQUESTS[:2]))
    assert open_bank(tmp_path).concepts == concepts
    for path in (tmp_path / "concepts.json", tmp_path / f"{concepts[1].memory}.safetensors"):
        content = path.read_bytes()
        for place in range(0, len(content), 3):
            path.write_bytes(flipped(content, place))
            with pytest.raises(UserError, match=f"{path.name}: damaged"):
                open_bank(tmp_path)
        path.write_bytes(content)
    open_bank(tmp_path)


def test_a_large_bank_is_one_pack_and_a_damaged_pack_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(concept_bank, "PACKED", 4)
    filled(tmp_path, REQUESTS[:3])
    pack = tmp_path / "memories.pack"
    assert not pack.exists()
    concepts = read_list(filled(tmp_path, REQUESTS[3:]))
    (tmp_path / f"{concepts[0].memory}.safetensors").unlink()  # Only the pack has it now.
    for concept in concepts:
        found = open_bank(tmp_path).records[concept.memory]
        assert bank.key(found.provenance) == concept.memory
        np.testing.assert_array_equal(found.memory.z, memory(concept.request.seed).z)
    content = pack.read_bytes()
    for place in (5, 90, len(content) // 2, len(content) - 1):
        pack.write_bytes(flipped(content, place))
        with pytest.raises(UserError, match=f"{concepts[0].memory}.safetensors: no such memory"):
            open_bank(tmp_path)
        assert "memories.pack: damaged" in caplog.text
        caplog.clear()
    file(tmp_path, REQUESTS)
    assert not pack.exists() or not bank.packs.names(tmp_path)
    assert open_bank(tmp_path).concepts == concepts


def test_all_missing_and_misplaced_files_are_named_at_once(tmp_path: Path) -> None:
    first, second, third = read_list(filled(tmp_path, REQUESTS[:3]))
    (tmp_path / f"{first.memory}.safetensors").unlink()
    shutil.copy(tmp_path / f"{third.memory}.safetensors", tmp_path / f"{second.memory}.safetensors")
    with pytest.raises(UserError) as error:
        open_bank(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert f"{first.memory}.safetensors: no such memory" in str(error.value)
    assert f"{second.memory}.safetensors: damaged" in str(error.value)
    with pytest.raises(UserError, match="no concept bank"):
        open_bank(tmp_path / "nowhere")


def test_whatever_write_fails_the_bank_is_whole_and_the_merge_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "bank", REQUESTS[:2])
    other = filled(tmp_path / "other", REQUESTS[2:5])
    before = read_list(folder)
    for allowed in range(4):  # Three memories and the list.
        calls = itertools.count()

        def dying(path: Path, content: bytes, calls: Any = calls, allowed: int = allowed) -> None:
            if next(calls) == allowed:
                path.with_name(f".{path.name}.1.tmp").write_bytes(content[:9])
                raise KeyboardInterrupt
            files.write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(bank, "write_atomically", dying)
            patch.setattr(concept_bank, "write_atomically", dying)
            with pytest.raises(KeyboardInterrupt):
                concept_bank.merge(folder, other)
        assert open_bank(folder).concepts == before
    concept_bank.merge(folder, other)
    assert sources(open_bank(folder).concepts) == set(NAMES[:5])


WRITER = """
import sys
from pathlib import Path
from emcid_jax.editing.bank import choice
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import solve as bank_solve

folder, first = Path(sys.argv[1]), int(sys.argv[2])
for concept in concept_bank.read_list(folder.parent / "all")[first::2]:
    concept_bank.add(folder, [concept])
"""


def test_two_processes_add_at_once_while_a_third_reads(tmp_path: Path) -> None:
    requests = [EditRequest(f"concept {i}", "a goldfish", TEMPLATES, seed=i) for i in range(40)]
    folder = tmp_path / "bank"
    everything = filled(tmp_path / "all", requests)
    file(folder, requests)
    concept_bank.add(folder, [])
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, str(first)], cwd=ROOT)
        for first in range(2)
    ]
    while any(writer.poll() is None for writer in writers):
        open_bank(folder)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert open_bank(folder).concepts == read_list(everything)


# Operations


def test_a_source_has_one_destination_weight_and_strength(tmp_path: Path) -> None:
    folder = filled(tmp_path / "bank", REQUESTS[:2])
    before = (folder / "concepts.json").read_bytes()
    dog = REQUESTS[0]
    for other, message in (
        (dataclasses.replace(dog, dest="cat"), "two destinations"),
        (dataclasses.replace(dog, weight=7.0), "weight of 'dog' is 7.0"),
        (dataclasses.replace(dog, seed=77), "'dog' is in the bank with other templates, seed"),
    ):
        with pytest.raises(UserError, match=message):
            filled(folder, [other])
        with pytest.raises(UserError, match=message):
            concept_bank.merge(folder, filled(tmp_path / message, [other]))
        assert (folder / "concepts.json").read_bytes() == before
    stronger = filled(tmp_path / "stronger", [dog])
    concept_bank.set_strength(stronger, read_list(stronger), 0.5)
    with pytest.raises(UserError, match=r"strength of 'dog' is 0\.5"):
        concept_bank.merge(folder, stronger)


def test_select(tmp_path: Path) -> None:
    concepts = file(tmp_path, [*REQUESTS, EditRequest("cat", "dog", TEMPLATES, seed=9)])

    def found(*criteria: Any) -> set[str]:
        return sources(choice.select(concepts, *criteria))

    assert found(["SNOW", " great  white shark"]) == {"snow", "great white shark"}
    assert found((), "*shark*") == {"great white shark"}
    assert found((), "Dog") == {"dog", "cat"}
    assert found((), "", [EditRequest("Nurse", "a goldfish", ("{}",), seed=5)]) == {"nurse"}
    assert found((), "", [EditRequest("nurse", "cat", TEMPLATES)]) == set()
    assert found() == set()
    with pytest.raises(UserError, match=r"'nurze' is not in the bank; did you mean 'nurse'\?"):
        found(["nurze"])


def test_diff_tells_what_is_where_and_what_changed(tmp_path: Path) -> None:
    ours = filled(tmp_path / "ours", REQUESTS[:3])
    theirs = filled(
        tmp_path / "theirs", [dataclasses.replace(REQUESTS[1], weight=9.0), *REQUESTS[2:4]]
    )
    concept_bank.set_strength(theirs, choice.select(read_list(theirs), ["snow"]), 0.5)
    assert choice.diff(read_list(ours), read_list(theirs)) == {
        "only_here": ["dog"],
        "only_there": ["nurse"],
        "changed": ["great white shark: weight 2.0 -> 9.0", "snow: strength 1.0 -> 0.5"],
    }


def test_removing_leaves_the_memory_so_that_adding_again_costs_nothing(tmp_path: Path) -> None:
    folder = filled(tmp_path, REQUESTS)
    gone = choice.select(read_list(folder), ["dog"])
    concept_bank.remove(folder, gone)
    assert os.path.exists(folder / f"{gone[0].memory}.safetensors")
    concept_bank.add(folder, gone)
    assert sources(open_bank(folder).concepts) == set(NAMES)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_an_unfit_strength_is_refused(tmp_path: Path, strength: float) -> None:
    folder = filled(tmp_path, REQUESTS[:1])
    with pytest.raises(UserError, match="give a number >= 0"):
        concept_bank.set_strength(folder, read_list(folder), strength)
