"""Safetensors in and out: exact round trips, and one clear error for anything malformed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from emcid_jax.models.weights.params import (
    abstract_params,
    hf_name,
    params_hash,
    read_params,
    to_hf,
    write_params,
)
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError


class Net(nn.Module):
    """One of each layer whose layout differs between Flax and PyTorch."""

    @nn.compact
    def __call__(self, images, ids):
        mixed = nn.Conv(5, (2, 3), name="down.0")(images).mean((1, 2))
        mixed = nn.LayerNorm(name="norm")(mixed)
        return nn.Dense(4, name="out")(mixed) + nn.Embed(7, 4, name="table")(ids)


INPUTS = (jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32))
DISK_SHAPES = {
    "down.0.bias": (5,),
    "down.0.weight": (5, 3, 2, 3),
    "norm.bias": (5,),
    "norm.weight": (5,),
    "out.bias": (4,),
    "out.weight": (4, 5),
    "table.weight": (7, 4),
}


@pytest.fixture
def abstract():
    return abstract_params(Net(), *INPUTS)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in DISK_SHAPES.items()
    }


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def test_forward_equals_torch_layers_fed_with_the_same_file(file, tensors, abstract):
    save_file(tensors, file)
    params = read_params(file, abstract)
    images = np.random.default_rng(1).standard_normal((2, 4, 4, 3)).astype(np.float32)
    ids = np.array([6, 2])
    ours = Net().apply({"params": params}, images, ids)

    weight = {name: torch.tensor(array) for name, array in tensors.items()}
    padded = torch.nn.functional.pad(torch.tensor(images.transpose(0, 3, 1, 2)), (1, 1, 0, 1))
    mixed = torch.nn.functional.conv2d(padded, weight["down.0.weight"], weight["down.0.bias"])
    mixed = torch.nn.functional.layer_norm(
        mixed.mean((2, 3)), (5,), weight["norm.weight"], weight["norm.bias"], eps=1e-6
    )
    theirs = mixed @ weight["out.weight"].T + weight["out.bias"] + weight["table.weight"][ids]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_written_file_is_what_torch_tools_expect(file, tensors, abstract):
    save_file(tensors, file)
    again = file.with_name("again.safetensors")
    write_params(again, read_params(file, abstract))
    for name, array in load_file(again).items():
        np.testing.assert_array_equal(array, tensors[name])
    with safe_open(again, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
    assert sorted(path.name for path in file.parent.iterdir()) == [again.name, file.name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, file, tensors, abstract):
    stored = {name: torch.tensor(array).to(dtype) for name, array in tensors.items()}
    save_torch(stored, file)
    params = read_params(file, abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for name, array in to_hf(params).items():
        np.testing.assert_array_equal(array, stored[name].float().numpy())


def test_sharded_folder_equals_single_file(tmp_path, tensors, abstract):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    save_file(tensors, whole / "model.safetensors")
    weight_map = {}
    for number, names in enumerate((list(tensors)[:3], list(tensors)[3:])):
        shard = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, parts / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert params_hash(read_params(whole, abstract)) == params_hash(read_params(parts, abstract))

    (parts / shard).unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors: no such file"):
        read_params(parts, abstract)
    index.write_text("[]")
    with pytest.raises(UserError, match=r"index\.json: .*is no JSON object"):
        read_params(parts, abstract)


def test_plain_file_is_preferred_to_its_half_precision_variant(tmp_path, tensors, abstract):
    save_file(tensors, tmp_path / "model.safetensors")
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    save_file(halves, tmp_path / "model.fp16.safetensors")
    for name, array in to_hf(read_params(tmp_path, abstract)).items():
        np.testing.assert_array_equal(array, tensors[name])
    (tmp_path / "model.safetensors").unlink()
    for name, array in to_hf(read_params(tmp_path, abstract)).items():
        np.testing.assert_array_equal(array, halves[name].astype(np.float32))


def test_rename_maps_and_drops(file, tensors, abstract):
    stored = {f"old.{name}": array for name, array in tensors.items()}
    save_file(stored | {"head.weight": np.zeros(3, np.float32)}, file)

    def rename(name):
        return name.removeprefix("old.") if name.startswith("old.") else None

    for name, array in to_hf(read_params(file, abstract, rename)).items():
        np.testing.assert_array_equal(array, tensors[name])


def damage_missing(tensors):
    del tensors["out.weight"]


def damage_unexpected(tensors):
    tensors["extra.weight"] = np.zeros(2, np.float32)


def damage_shape(tensors):
    tensors["down.0.weight"] = tensors["down.0.weight"].transpose(0, 1, 3, 2).copy()


def damage_type(tensors):
    tensors["norm.bias"] = np.zeros(5, np.int32)


def damage_nan(tensors):
    tensors["table.weight"][3, 1] = np.nan


def damage_infinite(tensors):
    tensors["out.bias"][0] = np.inf


DAMAGES = [
    (damage_missing, "missing: out.weight"),
    (damage_unexpected, "unexpected: extra.weight"),
    (damage_shape, "down.0.weight has shape (5, 3, 3, 2), expected (5, 3, 2, 3)"),
    (damage_type, "norm.bias has type I32"),
    (damage_nan, "table.weight"),
    (damage_infinite, "out.bias"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_each_damage_is_named_alone(damage, message, file, tensors, abstract):
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        read_params(file, abstract)
    text = str(caught.value)
    assert str(file) in text
    assert message in text
    assert "\n" not in text
    labels = ("missing", "unexpected", "wrong shape or type", "NaN or infinite")
    assert sum(f"{label}: " in text for label in labels) == 1


def test_all_damages_come_in_one_error(file, tensors, abstract):
    for damage, _ in DAMAGES:
        damage(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        read_params(file, abstract)
    for _, message in DAMAGES:
        assert message in str(caught.value)


def test_only_1x1_convolutions_are_linear_layers(file, tensors, abstract):
    linear = tensors["out.weight"]
    save_file(tensors | {"out.weight": linear[..., None, None]}, file)
    np.testing.assert_array_equal(read_params(file, abstract)["out"]["kernel"], linear.T)
    for wrong in (linear[..., None], np.stack([linear] * 2, -1)[..., None]):
        save_file(tensors | {"out.weight": wrong}, file)
        with pytest.raises(UserError, match=r"out\.weight has shape .*, expected \(4, 5\)"):
            read_params(file, abstract)


def test_two_tensors_for_one_parameter_are_refused(file, tensors, abstract):
    save_file(tensors | {"old.out.bias": tensors["out.bias"]}, file)
    with pytest.raises(UserError, match=r"old\.out\.bias|a second out\.bias"):
        read_params(file, abstract, lambda name: name.removeprefix("old."))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (0, "not a safetensors file"),
        (5, "not a safetensors file"),
        (200, "not a safetensors file"),
        (-1, r"cut off after \d+ of \d+ bytes, within [a-z0.]+\.(bias|weight);"),
    ],
)
def test_truncated_file(kept, message, file, tensors, abstract):
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"model\.safetensors: {message}"):
        read_params(file, abstract)


def test_a_shard_with_a_problem_is_named(tmp_path, tensors, abstract):
    tensors["out.bias"][0] = np.nan
    shards = {"a-1-of-2.safetensors": ["out.bias"], "a-2-of-2.safetensors": sorted(DISK_SHAPES)}
    shards["a-2-of-2.safetensors"].remove("out.bias")
    places = {}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
        places |= dict.fromkeys(names, shard)
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=r"infinite: out\.bias in a-1-of-2\.safetensors") as caught:
        read_params(tmp_path, abstract)
    assert str(tmp_path) in str(caught.value)


def test_parameters_go_where_they_shall(file, tensors, abstract):
    save_file(tensors, file)
    everywhere = parallel.replicated(parallel.make_mesh())
    params = read_params(file, parallel.shapes(abstract, everywhere))
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {everywhere}
    jax.tree.map(np.testing.assert_array_equal, params, read_params(file, abstract))


def test_absent_and_ambiguous_folders(tmp_path, tensors, abstract):
    with pytest.raises(UserError, match="no such file"):
        read_params(tmp_path / "nowhere", abstract)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no \*\.safetensors file"):
        read_params(tmp_path, abstract)
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"several weight files \(a\.safetensors, b\.safetensors"):
        read_params(tmp_path, abstract)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, jnp.float32), (1e6, jnp.float16), (-np.inf, jnp.bfloat16)]
)
def test_values_that_do_not_fit_are_not_written(value, dtype, file):
    params = {"out": {"bias": jnp.array([0.0, value], jnp.float32)}}
    with pytest.raises(UserError, match=r"out\.bias"):
        write_params(file, params, dtype)
    assert not list(file.parent.iterdir())


def test_failed_write_keeps_the_old_file_and_leaves_nothing(file, monkeypatch):
    write_params(file, {"out": {"bias": jnp.zeros(2)}})
    before = file.read_bytes()

    def no_space(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("emcid_jax.storage.checksums.save_file", no_space)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write_params(file, {"out": {"bias": jnp.ones(2)}})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_folder_in_the_way_is_a_user_error(file):
    file.write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_params(file / "model.safetensors", {"out": {"bias": jnp.zeros(2)}})


def test_names_that_collide_on_disk_are_refused():
    with pytest.raises(ValueError, match="2 parameters have only 1 names"):
        to_hf({"out": {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}})


def test_hash_sees_values_names_and_shapes_but_not_order():
    zeros, ones = jnp.zeros((2, 3)), jnp.ones(3)
    base = {"a": {"kernel": zeros, "bias": ones}, "b": {"scale": ones}}
    same = {"b": {"scale": ones}, "a": {"bias": ones, "kernel": zeros}}
    assert params_hash(base) == params_hash(same)
    assert len(params_hash(base)) == 64
    others = [
        {**base, "b": {"scale": ones.at[1].set(1 + 1e-7)}},
        {**base, "c": {"scale": ones}},
        {"a": base["a"], "c": base["b"]},
        {**base, "a": {"kernel": zeros.reshape(3, 2), "bias": ones}},
        {**base, "b": {"scale": ones.astype(jnp.bfloat16)}},
    ]
    assert len({params_hash(tree) for tree in [base, *others]}) == 6


names = st.from_regex(r"[a-z_]{1,6}[0-9]?(\.[0-9]{1,2})?", fullmatch=True)
shapes = {
    "kernel": st.lists(st.integers(1, 4), min_size=2, max_size=4),
    "bias": st.lists(st.integers(1, 5), min_size=1, max_size=1),
    "embedding": st.lists(st.integers(1, 4), min_size=2, max_size=2),
    "token": st.lists(st.integers(1, 3), min_size=0, max_size=3),
}


@st.composite
def trees(draw):
    """Nested dicts of float32 arrays that any of the stored types can hold."""

    def leaves():
        chosen = draw(st.sets(st.sampled_from(sorted(shapes)), min_size=1))
        chosen -= {"embedding"} if "kernel" in chosen else set()
        # A bfloat16 has 8 significant bits, a float16 reaches 65504: these fit all types.
        return {
            leaf: jnp.asarray(
                rng.integers(-256, 257, draw(shapes[leaf])) * 2.0 ** rng.integers(-6, 7),
                jnp.float32,
            )
            for leaf in sorted(chosen)
        }

    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tree = {}
    for outer in draw(st.sets(names, min_size=1, max_size=3)):
        # The outer names end in "x" and the inner ones do not, so joined paths are unique.
        tree[outer + "x"] = {inner: leaves() for inner in draw(st.sets(names, max_size=2))}
        tree[outer + "x"] |= leaves()
    return tree


@settings(max_examples=60, deadline=None)
@given(trees(), st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]))
def test_round_trip_is_exact(tree, dtype):
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "model.safetensors"
        write_params(path, tree, dtype)
        back = read_params(path.parent, abstract)
        stored = load_file(path) if dtype != jnp.bfloat16 else None
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert params_hash(back) == params_hash(tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = tuple(entry.key for entry in path)
        if stored is not None and keys[-1] == "kernel":
            # Independent statement of the layout: the last two axes swapped and moved in front.
            expected = np.moveaxis(np.asarray(leaf), (-1, -2), (0, 1))
            np.testing.assert_array_equal(stored[hf_name(keys)], expected)
