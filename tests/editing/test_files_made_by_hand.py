"""Banks, edits and moments whose content was changed and whose checksum was renewed.

Every field is checked: such a file is read, or refused by one line that names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from emcid_jax.editing.bank import choice, concepts, memories, pack_file
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.encoder.sites import filed_sites
from emcid_jax.editing.export import edit_file, lora
from emcid_jax.editing.moments import second_moment
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.tasks.edit_file import summary

DATA = Path(__file__).parents[1] / "data" / "version_0_1"
TEXTS = {"text_encoder": ClipTextModel(ClipTextConfig())}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 2, 10**30, 0.5, math.nan, math.inf, "", "x", "../../x", [], [[]], {}, ["a"]]
)


def changed(data: st.DataObject, tree: Any) -> Any:
    """The JSON value with one place in it replaced, removed or added."""
    if not isinstance(tree, dict | list) or not tree or data.draw(st.integers(0, 4)) == 0:
        return data.draw(VALUES)
    copy: Any = tree.copy()
    key = data.draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
    match data.draw(st.sampled_from(["deeper", "deeper", "deeper", "less", "more"])):
        case "deeper":
            copy[key] = changed(data, tree[key])
        case "less":
            del copy[key]
        case _ if isinstance(copy, dict):
            copy[data.draw(st.sampled_from(["more", "", "layer", "seed"]))] = data.draw(VALUES)
        case _:
            copy.append(data.draw(VALUES))
    return copy


def rewritten(data: st.DataObject, content: bytes, plain: tuple[str, ...] = ()) -> bytes:
    """The safetensors file with other metadata or tensors, and a checksum that fits.

    Metadata hold JSON, but for the fields in `plain`.
    """
    arrays = dict(load(content))
    said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if data.draw(st.booleans()):
        field = data.draw(st.sampled_from(sorted(said.keys() - {"checksum"})))
        if field in plain:
            said[field] = data.draw(st.sampled_from(["", "x", "[" * 10_000]))
        else:
            said[field] = json.dumps(changed(data, json.loads(said[field])))
    else:
        name = data.draw(st.sampled_from(sorted(arrays)))
        array = arrays.pop(name)
        match data.draw(
            st.sampled_from(["less", "name", "kind", "shape", "nan", "short", "scalar"])
        ):
            case "name":
                arrays[data.draw(st.sampled_from(["x", "-1", "7", f"{name}.up"]))] = array
            case "kind":
                kind = data.draw(st.sampled_from([np.float16, np.float64, np.int32, np.bool_]))
                arrays[name] = array.astype(kind)
            case "shape":
                arrays[name] = array.reshape(-1, 1) if array.ndim == 1 else array.reshape(-1)
            case "nan":
                arrays[name] = np.full_like(array, data.draw(st.sampled_from([math.nan, -1.0, 0])))
            case "short":
                arrays[name] = np.ascontiguousarray(array[:-1])
            case "scalar":
                arrays[name] = np.zeros((), np.float32)
    return checksums.sealed(save(arrays, {**said, "checksum": checksums.UNSEALED}))


def refusal(read: Callable[[], object]) -> str:
    """The user error that `read` ends with; empty if it does not."""
    try:
        read()
    except UserError as error:
        return str(error)
    return ""


def require_read_or_refused(path: Path, read: Callable[[], object]) -> None:
    said = refusal(read)
    assert not said or str(path) in said
    assert "\n" not in said
    assert len(said) < 1000


@hypothesis.settings(max_examples=150)
@given(st.data())
def test_an_edit(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "edit.safetensors"
    path.write_bytes(rewritten(data, (DATA / "edit.safetensors").read_bytes(), ("format",)))

    def use() -> None:
        summary(*edit_file.read_ledger(path), 1)
        content, ledger = edit_file.read_edit(path)
        assert all(np.isfinite(delta).all() for delta in content.deltas().values())
        edit_file.read_report(ledger)
        lora.write_lora(path.with_name("lora.safetensors"), content, ledger, 2)

    require_read_or_refused(path, use)


@hypothesis.settings(max_examples=150)
@given(st.data())
def test_moments(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "moments.safetensors"
    if not (path.with_name("whole.safetensors")).exists():
        found = second_moment.read_moments(DATA / "second_moments.safetensors")
        second_moment.write_moments(path.with_name("whole.safetensors"), found)
    path.write_bytes(rewritten(data, path.with_name("whole.safetensors").read_bytes()))

    def use() -> None:
        found = second_moment.read_moments(path)
        assert found.count >= 1
        assert found.moments.keys() == set(found.provenance.layers)

    require_read_or_refused(path, use)


def test_a_memory_of_a_block_that_the_model_lacks() -> None:
    with pytest.raises(UserError, match=r"^bank/a.safetensors: stage_one.layer is 99, but text_e"):
        filed_sites({"layer": 99}, TEXTS, "bank/a.safetensors")


@hypothesis.settings(max_examples=150)
@given(st.data())
def test_a_memory(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "memories"
    folder.mkdir(exist_ok=True)
    content = rewritten(data, next((DATA / "bank").glob("*.safetensors")).read_bytes(), ("code",))
    said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    name = hashlib.sha256(said["provenance"].encode()).hexdigest()
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)

    def use() -> None:
        record = memories.read_record(folder, name)
        count = memories.edited_tokens(record.provenance)
        record.memory.z.reshape(count, -1)
        assert len(filed_sites(record.provenance["stage_one"], TEXTS, path)) == 1
        assert np.isfinite(bank_solve.target(record.memory, 0.5)).all()

    require_read_or_refused(path, use)
    pack_file.write(folder, {name: content})
    assert pack_file.read(folder) == {name: content}


@hypothesis.settings(max_examples=150)
@given(st.data())
def test_a_list_of_concepts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "bank"
    if not folder.exists():
        shutil.copytree(DATA / "bank", folder)
    content = json.loads((DATA / "bank" / concepts.LIST).read_bytes())
    content["concepts"] = changed(data, content["concepts"])
    content["checksum"] = checksums.UNSEALED
    path = folder / concepts.LIST
    path.write_bytes(checksums.sealed(json.dumps(content).encode()))

    def use() -> None:
        found = concepts.open_bank(folder).concepts
        choice.diff(found, found)
        assert all(concept.strength >= 0 for concept in found)

    said = refusal(use)
    assert not said or str(folder) in said


@pytest.mark.parametrize("sizes", [[], None, {"a": -1}, {"a": "b"}, {"a": 10**30}, {"a": None}])
def test_a_pack_costs_nothing(sizes: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "bank", tmp_path / "bank"))
    head = json.dumps({"checksum": checksums.UNSEALED, "sizes": sizes}).encode() + b"\n"
    (folder / pack_file.FILE).write_bytes(checksums.sealed(head))
    assert len(concepts.open_bank(folder).records) == 3
