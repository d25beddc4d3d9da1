"""Units in the place of others: which go, what the rest takes over, and files of one width."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import CLIPTextModel

from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.encoder.hidden_units import disk_arrays
from emcid_jax.editing.export import edit_file, into_folder, lora, stored_weights
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.units import room
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import tokenize
from emcid_jax.runtime.errors import UserError

BLOCK, WIDTH = 0, 1536
CONFIG = StageTwoConfig(layers=(BLOCK,), solver="units", unit_contexts=6, units_in_place=True)
NAMES = ("goldfish", "acoustic guitar", "electric guitar")
PROMPTS = [f"the old {name} in the snow" for name in NAMES] + ["a photo of a red violin", ""]
PARTS = ("rows", "biases", "answers")


@pytest.fixture(scope="module")
def solved(pipeline, measured, bank):
    return bank_solve.solve(bank, pipeline, {"text_encoder": measured}, CONFIG)["text_encoder"]


@pytest.fixture(scope="module")
def wide(pipeline, measured, bank):
    config = dataclasses.replace(CONFIG, units_in_place=False)
    return bank_solve.solve(bank, pipeline, {"text_encoder": measured}, config)["text_encoder"]


@pytest.fixture(scope="module")
def content(solved):
    return edit_file.pack(solved.deltas, solved.units)


@pytest.fixture(scope="module")
def ledger(pipeline):
    base = params_hash(pipeline.params["text_encoder"])
    return {"base": {"text_encoder": base}, "edited": "?", "requests": []}


@functools.partial(jax.jit, static_argnums=0)
def final(model, params, ids):
    return model.apply({"params": params}, ids).last_hidden_state


def states(pipeline, params, prompts=PROMPTS):
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    return np.asarray(final(pipeline.encoder.model, params, ids))


def by_transformers(pipeline, model, prompts=PROMPTS):
    ids = torch.as_tensor(tokenize(pipeline.encoder.tokenizer, prompts)).long()
    with torch.no_grad():
        return model(ids).last_hidden_state.numpy()


@pytest.fixture
def answers():
    """Of 14 hidden units that are far from independent, two of them to the others' letter."""
    rng = np.random.default_rng(4)
    found = np.tanh(rng.normal(size=(400, 6)) @ rng.normal(size=(6, 12)))
    return np.concatenate([found, found[:, 3:4] - found[:, 7:8], 2 * found[:, 5:6]], axis=1)


def left_over(answers, columns, gone):
    """Mean square that least squares cannot make up for, by NumPy on the tokens themselves."""
    kept = [unit for unit in range(answers.shape[1]) if unit not in gone]
    apart = answers - answers.mean(axis=0)
    asked = apart[:, gone] @ columns[:, gone].T
    fitted, *_ = np.linalg.lstsq(apart[:, kept], asked, rcond=None)
    return np.square(asked - apart[:, kept] @ fitted).sum() / len(answers), fitted


def test_units_go_by_what_cannot_be_made_up_for(answers, monkeypatch):
    """One at a time, each the cheapest that there is, by brute force."""
    monkeypatch.setattr(room, "TOGETHER", 1)
    rng = np.random.default_rng(5)
    columns = rng.normal(size=(5, answers.shape[1]))
    covariance = np.cov(answers.T, bias=True) + 1e-9 * np.eye(answers.shape[1])
    found = room.least_missed(columns, covariance, 8).tolist()
    assert len(set(found)) == 8
    for count in range(8):
        costs = {
            unit: left_over(answers, columns, [*found[:count], unit])[0]
            for unit in range(answers.shape[1])
            if unit not in found[:count]
        }
        assert costs[found[count]] <= min(costs.values()) + 1e-6 * np.square(columns).sum()


def test_the_others_take_over_by_least_squares(answers):
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(5, answers.shape[1]))
    gone = np.array([9, 2, 0])
    covariance = np.cov(answers[:, :12].T, bias=True)
    change = room.refitted(columns[:, :12], covariance, gone)
    _, fitted = left_over(answers[:, :12], columns, gone.tolist())
    kept = [unit for unit in range(12) if unit not in gone]
    np.testing.assert_allclose(change[:, kept], fitted.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(change[:, gone], -columns[:, gone])


def test_with_more_to_go_the_first_stay_the_same(pipeline, measured):
    few, many = (
        room.make_room(pipeline.encoder, BLOCK, count, measured.reference) for count in (20, 100)
    )
    np.testing.assert_array_equal(many[0].places[:20], few[0].places)
    assert 0 < few[1].lost < many[1].lost < 0.5
    assert (many[1].gone, many[1].inner) == (100, WIDTH)


def test_the_same_gates_answer_and_the_rest_stays_almost(pipeline, solved, wide):
    for part in PARTS:
        np.testing.assert_array_equal(getattr(solved.units, part), getattr(wide.units, part))
    old, new, beside = (
        states(model, model.params["text_encoder"])
        for model in (
            pipeline,
            stage_two.with_edit(pipeline, {"text_encoder": solved}),
            stage_two.with_edit(pipeline, {"text_encoder": wide}),
        )
    )
    assert new.shape == old.shape
    size = np.abs(old).max()
    for i in range(len(NAMES)):
        assert np.abs(beside[i] - old[i]).max() > 0.02 * size
    # Six of 1,536 hidden units.
    assert np.abs(new - beside).max() < 2e-3 * size
    assert solved.report.units.room.gone == 6
    assert solved.report.units.room.lost < 1e-3


def test_weights_on_disk_are_those_that_are_computed_with(pipeline, content, solved):
    """And the units stand there as they are, in their places."""
    base = pipeline.params["text_encoder"]
    edited = stage_two.apply_edit(base, solved)["text_model"]["encoder"]["layers.0"]["mlp"]
    stored = {
        f"text_model.encoder.layers.0.mlp.{layer}.{name}": np.asarray(
            base["text_model"]["encoder"]["layers.0"]["mlp"][layer][
                "kernel" if name == "weight" else name
            ]
        ).T
        for layer, name in itertools.product(("fc1", "fc2"), ("weight", "bias"))
    }
    added = stored_weights.add_deltas(stored, content)
    for name, array in added.items():
        layer, kind = name.split(".")[-2:]
        wanted = np.asarray(edited[layer]["kernel" if kind == "weight" else kind]).T
        np.testing.assert_array_equal(array, wanted)
    own, places = disk_arrays(solved.units), solved.units.room.places
    start = "text_model.encoder.layers.0.mlp."
    np.testing.assert_allclose(added[f"{start}fc1.weight"][places], own["fc1.weight"], rtol=1e-6)
    np.testing.assert_array_equal(added[f"{start}fc1.bias"][places], own["fc1.bias"])
    np.testing.assert_allclose(added[f"{start}fc2.weight"][:, places], own["fc2.weight"], rtol=1e-6)


def test_files_keep_the_units_and_their_room(content, solved, tmp_path):
    ledger = {"report": dataclasses.asdict(solved.report)}
    for name, array in content.arrays.items():
        assert array.dtype == (np.int32 if name.endswith("places") else np.float32)
    bare = {"format": 2, "base": {"text_encoder": "?"}, "edited": "?", "stage_one": []}
    bare |= {"moments": {}, "stage_two": {}, "requests": []}
    path = tmp_path / "edit.safetensors"
    edit_file.write_edit(path, content, bare | ledger)
    again, read = edit_file.read_edit(path)
    assert edit_file.read_report(read) == solved.report
    for part in PARTS:
        np.testing.assert_array_equal(getattr(again.units(), part), getattr(solved.units, part))
    for field in dataclasses.fields(solved.units.room):
        np.testing.assert_array_equal(
            getattr(again.units().room, field.name), getattr(solved.units.room, field.name)
        )
    # A room that is not for just these units.
    for name, wrong in (
        ("room.places", np.zeros(6, np.int32)),
        ("room.places", np.array([0, 1, 2, 3, 4, WIDTH], np.int32)),
        ("room.shift", np.zeros(3, np.float32)),
    ):
        key = next(one for one in content.arrays if one.endswith(name))
        broken = dataclasses.replace(content, arrays=content.arrays | {key: wrong})
        edit_file.write_edit(path, broken, bare | ledger)
        with pytest.raises(UserError, match="do not fit each other"):
            edit_file.read_edit(path)


def test_transformers_loads_the_folder_and_undo_leaves_the_very_bytes(
    pipeline, content, solved, ledger, tmp_path
):
    place = tmp_path / "model" / "text_encoder"
    shutil.copytree(pipeline.folder / "text_encoder", place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    into_folder.apply(place.parent, content, ledger)
    assert (place / "config.json").read_bytes() == before["config.json"]
    model = CLIPTextModel.from_pretrained(place).eval().float()
    assert model.config.intermediate_size == WIDTH
    rounded = jax.tree.map(  # The bundled model is stored in float16.
        lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32),
        stage_two.apply_edit(pipeline.params["text_encoder"], solved),
    )
    np.testing.assert_allclose(
        by_transformers(pipeline, model), states(pipeline, rounded), rtol=1e-4, atol=1e-4
    )
    into_folder.undo(place.parent)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tools_that_add_differences_get_the_edit(
    pipeline, content, solved, ledger, tmp_path, dtype
):
    """`<module>.diff` to the weight and `.diff_b` to the bias, in the weight's own type."""
    path = tmp_path / "diff.safetensors"
    lora.write_diff(path, content, ledger, dtype)
    kind = getattr(torch, dtype)
    model = CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder").eval().to(kind)
    modules = {
        "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_"): module
        for name, module in model.named_modules()
    }
    added = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    wanted = {"diff": "weight", "diff_b": "bias"}
    with torch.no_grad():
        for name, change in added.items():
            key, _, part = name.rpartition(".")
            assert part in wanted, name
            weight = getattr(modules[key], wanted[part])
            weight += change.to(weight.dtype)
    assert sorted(name.rpartition("_mlp_")[2] for name in added) == [
        "fc1.diff", "fc1.diff_b", "fc2.diff", "fc2.diff_b"
    ]  # fmt: skip
    edited = states(pipeline, stage_two.apply_edit(pipeline.params["text_encoder"], solved))
    off = np.abs(by_transformers(pipeline, model.float()) - edited).max() / np.abs(edited).max()
    assert off < (1e-5 if dtype == "float32" else 0.02)


def test_what_cannot_be_is_refused(pipeline, measured, content, ledger, tmp_path):
    with pytest.raises(UserError, match="changes biases, which a LoRA has none of"):
        lora.write_lora(tmp_path / "lora.safetensors", content, ledger, 4)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="768 requests take 1,536 of the 1,536 hidden units"):
        room.require_room(CONFIG, 768, pipeline.encoder)
    room.require_room(CONFIG, 767, pipeline.encoder)
    with pytest.raises(UserError, match="solver is 'ridge', which adds no units"):
        StageTwoConfig(units_in_place=True).check()
