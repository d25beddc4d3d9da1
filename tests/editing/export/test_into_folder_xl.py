"""An edit of both encoders of SDXL in a model folder: read by diffusers, undone to the bit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xl_states
from emcid_jax.editing.export import into_folder
from emcid_jax.editing.export.edit_file import EditFile, Edits, pack
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError

PARTS = ("text_encoder", "text_encoder_2")


@pytest.fixture
def folder(tiny_xl_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_xl_folder, tmp_path / "model"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        f"{part}/{path.name}": path.read_bytes()
        for part in PARTS
        if (folder / part).is_dir()
        for path in sorted((folder / part).iterdir())
    }


def test_apply_and_undo(
    folder: Path, tiny_xl_folder: Path, xl_edits: Edits, xl_ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    for part in PARTS:
        shutil.copyfile(
            folder / part / "model.safetensors", folder / part / "model.fp16.safetensors"
        )
    left = into_folder.apply(folder, xl_edits, xl_ledger)
    assert left == [f"{part}/model.fp16.safetensors" for part in PARTS]
    pipe = xl_states.load(folder)
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, xl_edits))
    xl_states.assert_differs(pipe, xl_states.load(tiny_xl_folder))
    for encoder in load_pipeline(folder).encoders:
        assert encoder.params.keys() >= {"text_model"}
    with pytest.raises(UserError, match="is edited already; undo that first"):
        into_folder.apply(folder, xl_edits, xl_ledger)
    for part in PARTS:
        assert json.loads((folder / part / "edit.json").read_text())["ledger"] == xl_ledger
        (folder / part / "model.fp16.safetensors").unlink()
    into_folder.undo(folder)
    assert snapshot(folder) == before
    with pytest.raises(UserError, match="nothing to undo"):
        into_folder.undo(folder)


def test_units_in_one_encoder_and_weights_in_the_other(
    folder: Path, xl_edits: Edits, units_content: EditFile, xl_ledger: dict[str, Any]
) -> None:
    edits = {"text_encoder": units_content, "text_encoder_2": xl_edits["text_encoder_2"]}
    before = snapshot(folder)
    into_folder.apply(folder, edits, xl_ledger)
    pipe = xl_states.load(folder)
    assert pipe.text_encoder.config.intermediate_size == 64 + units_content.units().width  # type: ignore[union-attr]
    ours = load_pipeline(folder)
    assert ours.texts["text_encoder_2"].config.intermediate_size == 96
    into_folder.undo(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("wrong", PARTS)
def test_nothing_is_changed_where_one_encoder_is_refused(
    wrong: str, folder: Path, xl_edits: Edits, xl_ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    base = xl_ledger["base"] | {wrong: "0" * 64}
    words = {"text_encoder": ": text encoder", "text_encoder_2": ": second text encoder"}
    with pytest.raises(UserError, match=f"{words[wrong]} .* is not the one .*000000000000"):
        into_folder.apply(folder, xl_edits, xl_ledger | {"base": base})
    assert snapshot(folder) == before
    misfit = {**xl_edits, wrong: pack({1: np.ones((7, 7))})}
    with pytest.raises(UserError, match="is not in this text encoder"):
        into_folder.apply(folder, misfit, xl_ledger)
    assert snapshot(folder) == before

    into_folder.apply(folder, xl_edits, xl_ledger)
    after = snapshot(folder)
    changed = folder / wrong / "model.safetensors"
    save_file(load_file(changed) | {"more": np.ones(1)}, changed)
    now = snapshot(folder)
    with pytest.raises(UserError, match="was changed after the edit"):
        into_folder.undo(folder)
    assert snapshot(folder) == now != after
    into_folder.undo(folder, force=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize("completes", ["apply", "undo"])
def test_a_call_broken_off_anywhere_is_completed_by_either_call(
    completes: str,
    folder: Path,
    xl_edits: Edits,
    xl_ledger: dict[str, Any],
    interrupted: Callable[[Callable[[], object], int], bool],
) -> None:
    def apply() -> object:
        return into_folder.apply(folder, xl_edits, xl_ledger)

    def undo() -> object:
        return into_folder.undo(folder)

    def weights() -> list[bytes]:
        now = snapshot(folder)
        return [now[f"{part}/model.safetensors"] for part in PARTS]

    before, plain = snapshot(folder), weights()
    apply()
    after, edited = snapshot(folder), weights()
    undo()
    for call, start in ((apply, before), (undo, after)):
        number = 0
        while True:
            if start is after and weights() != edited:
                apply()
            broken = interrupted(call, number)
            # Every encoder is whole, edited or not.
            for now, old, new in zip(weights(), plain, edited, strict=True):
                assert now in (old, new), (call, number)
            if not broken:
                break
            number += 1
            with contextlib.suppress(UserError):  # Broken off behind its last change: done already.
                (apply if completes == "apply" else undo)()
            assert snapshot(folder) == (after if completes == "apply" else before), number
            if start is before and completes == "apply":
                undo()
        assert number > 4
        if start is before:
            undo()


def test_an_edit_of_one_encoder_leaves_the_other_alone(
    folder: Path, tiny_xl_folder: Path, xl_edits: Edits, xl_ledger: dict[str, Any]
) -> None:
    before = snapshot(folder)
    for part in PARTS:
        edits = {**dict.fromkeys(PARTS, pack({})), part: xl_edits[part]}
        into_folder.apply(folder, edits, xl_ledger)
        now = snapshot(folder)
        assert {name.split("/")[0] for name in now if now[name] != before.get(name)} == {part}
        xl_states.assert_same(xl_states.load(folder), xl_states.edited(tiny_xl_folder, edits))
        into_folder.undo(folder)
        assert snapshot(folder) == before
    with pytest.raises(UserError, match="has none of the text encoders that the edit changes"):
        into_folder.apply(folder, dict.fromkeys(PARTS, pack({})), xl_ledger)


def test_the_refiner_gets_the_edit_of_its_encoder(
    folder: Path, tiny_xl_folder: Path, xl_edits: Edits, xl_ledger: dict[str, Any]
) -> None:
    shutil.rmtree(folder / "text_encoder")
    before = snapshot(folder)
    into_folder.apply(folder, xl_edits, xl_ledger)
    own = xl_states.load(tiny_xl_folder)
    second = own.text_encoder_2.from_pretrained(folder / "text_encoder_2")
    only = {"text_encoder_2": xl_edits["text_encoder_2"]}
    xl_states.assert_same(
        xl_states.load(tiny_xl_folder, text_encoder_2=second),
        xl_states.edited(tiny_xl_folder, only),
    )
    into_folder.undo(folder)
    assert snapshot(folder) == before


def test_a_copy_is_a_whole_edited_model(
    folder: Path, tiny_xl_folder: Path, xl_edits: Edits, xl_ledger: dict[str, Any], tmp_path: Path
) -> None:
    extra = folder / "text_encoder_2" / "model.fp16.safetensors"
    shutil.copyfile(extra.with_name("model.safetensors"), extra)
    before = snapshot(folder)
    target = tmp_path / "out" / "model"
    left = into_folder.write_copy(target, folder, xl_edits, xl_ledger)
    assert left == ["text_encoder_2/model.fp16.safetensors"]
    assert snapshot(folder) == before
    assert set(snapshot(target)) == {
        f"{part}/{name}" for part in PARTS for name in ("config.json", "model.safetensors")
    }
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (target / unet).samefile(folder / unet)
    pipe = xl_states.load(target)
    xl_states.assert_same(pipe, xl_states.edited(tiny_xl_folder, xl_edits))
