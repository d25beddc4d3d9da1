"""The concept bank: a memory is found again only when everything that decides it is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank.memories import Memory

REQUEST = EditRequest("dog", "cat", ("A photo of {}", "{}"), seed=3)
CONFIG = StageOneConfig()
MODEL = {"text_encoder": "a", "unet": "b", "tokenizer": "c"}


def name(request: EditRequest = REQUEST, model: dict[str, str] = MODEL, **settings: Any) -> str:
    return bank.key(bank.provenance(request, dataclasses.replace(CONFIG, **settings), model))


def memory(seed: int = 0) -> Memory:
    rng = np.random.default_rng(seed)
    return Memory(*(rng.standard_normal(n).astype(np.float32) for n in (8, 8, 5, 4, 4)))


def replaced(**fields: Any) -> EditRequest:
    return dataclasses.replace(REQUEST, **fields)


def test_each_thing_that_decides_a_memory_changes_its_name(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    changed = [
        name(),
        name(replaced(source="Dog")),
        name(replaced(dest="tench")),
        name(replaced(templates=("{}", "A photo of {}"))),
        name(replaced(templates=("A photo of {}",))),
        name(replaced(seed=4)),
        name(image_source="files"),
        name(replaced(image_paths=(str(tmp_path / "one"),)), image_source="files"),
        name(replaced(image_paths=(str(tmp_path / "two"),)), image_source="files"),
        name(model=MODEL | {"unet": "x"}),
        name(model=MODEL | {"vae": "d"}),
        name(layer=9),
        name(steps=99),
        name(learning_rate=0.1),
        name(clamp_norm_factor=1.0),
        name(weight_decay=0.0),
        name(text_loss_scale=0.0),
        name(objective="esd"),
        name(esd_guidance=2.0),
        name(image_source="source"),
        name(samples_per_prompt=2),
        name(image_steps=19),
        name(image_guidance=3.0),
    ]
    assert len(set(changed)) == len(changed)


def test_every_setting_but_the_batch_is_in_the_name() -> None:
    settings = bank.provenance(REQUEST, CONFIG, MODEL)["stage_one"]
    fields = {field.name for field in dataclasses.fields(StageOneConfig)}
    assert set(settings) == fields - {"concept_batch", *bank.LATER, *bank.OF_TWO}
    both = bank.provenance(REQUEST, CONFIG, MODEL | {"text_encoder_2": "b"})["stage_one"]
    assert set(both) == set(settings) | set(bank.OF_TWO)


def test_a_setting_added_since_counts_once_it_changes_something() -> None:
    assert all(getattr(StageOneConfig(), name) == before for name, before in bank.LATER.items())
    assert name(text_tokens=24) != name(text_tokens=0) == name()
    assert name(edited_tokens=2) != name(edited_tokens=1) == name()
    assert name(text_steps=9) != name(text_steps=0) == name()
    assert name(shorten=0.01) != name(shorten=0.0) == name()


def test_what_decides_nothing_does_not_change_the_name() -> None:
    same = {
        name(),
        name(concept_batch=4),
        name(replaced(weight=2.0)),
        name(replaced(source_id=1, dest_id=2, seeds=(5, 6))),
        name(replaced(validation_templates=("my {}",))),
        name(replaced(origin="other.json:7")),
        name(replaced(image_paths=("not there, not read",))),
        name(model=dict(reversed(MODEL.items()))),
    }
    assert len(same) == 1


def test_image_files_count_by_content_not_by_path(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dog.png").write_bytes(b"picture")
    first, second = (
        name(replaced(image_paths=(str(tmp_path / folder / "dog.png"),)), image_source="files")
        for folder in "ab"
    )
    assert first == second


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    about = bank.provenance(REQUEST, CONFIG, MODEL)
    assert bank.read(tmp_path, about) is None
    assert bank.read_details(tmp_path, about) == {}
    bank.write(tmp_path, about, memory(), {"concept_batch": 8})
    found = bank.read(tmp_path, about)
    assert found is not None
    for got, wanted in zip(found, memory(), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
    assert bank.read_details(tmp_path, about) == {"concept_batch": 8}
    other = bank.provenance(replaced(seed=4), CONFIG, MODEL)
    assert bank.read(tmp_path, other) is None


def test_writing_again_replaces_the_record_and_leaves_nothing_else(tmp_path: Path) -> None:
    about = bank.provenance(REQUEST, CONFIG, MODEL)
    for seed in (0, 1):
        bank.write(tmp_path, about, memory(seed), {})
    assert [path.name for path in tmp_path.iterdir()] == [f"{bank.key(about)}.safetensors"]
    found = bank.read(tmp_path, about)
    assert found is not None
    np.testing.assert_array_equal(found.z, memory(1).z)


@pytest.mark.parametrize("kept", [0, 5, 100])
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, kept: int) -> None:
    about = bank.provenance(REQUEST, CONFIG, MODEL)
    bank.write(tmp_path, about, memory(), {})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    assert bank.read(tmp_path, about) is None
    assert bank.read_details(tmp_path, about) == {}
