"""A patched single-file checkpoint differs from its source in the edited weights alone."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.editing.encoder.hidden_units import Room, Units
from emcid_jax.editing.export.edit_file import pack
from emcid_jax.editing.export.into_single_file import write_checkpoint
from emcid_jax.pipelines.single_file import file_hash
from emcid_jax.runtime.errors import UserError

PLAIN = "cond_stage_model.transformer."
# Keys of published files: 1.x with and without transformers' prefix, 2.x in OpenCLIP's names.
FC2 = {
    "1": (PLAIN + "text_model.", "encoder.layers.{}.mlp.fc2.weight"),
    "early 1": (PLAIN, "encoder.layers.{}.mlp.fc2.weight"),
    "2": ("cond_stage_model.model.", "transformer.resblocks.{}.mlp.c_proj.weight"),
}


def checkpoint(kind: str, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    start, name = FC2[kind]
    tokens = "token_embedding.weight" if kind == "2" else "embeddings.token_embedding.weight"
    shapes = {start + name.format(i): (8, 12) for i in range(3)}
    shapes |= {
        start + tokens: (5, 8),
        "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
    }
    return {n: rng.standard_normal(shape).astype(dtype) for n, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("1", "float16"), ("early 1", "float32"), ("2", "bfloat16")]
)
def test_only_the_edited_weights_change(kind: str, dtype: str, tmp_path: Path) -> None:
    base = checkpoint(kind, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    source, target = tmp_path / "sd.safetensors", tmp_path / "out" / "edited.safetensors"
    save_file(base, source, metadata={"note": "mine"})
    rng = np.random.default_rng(1)
    deltas = {layer: 0.1 * rng.standard_normal((8, 12)) for layer in (0, 2)}
    content = pack(deltas)
    before = source.read_bytes()
    write_checkpoint(target, source, content, file_hash(source))
    assert source.read_bytes() == before
    length = 8 + int.from_bytes(before[:8], "little")
    assert target.read_bytes()[:length] == before[:length]
    edited = load_file(target)
    changed = {"".join(FC2[kind]).format(layer): content.deltas()[layer] for layer in deltas}
    for name, array in base.items():
        wanted = (array.astype(np.float64) + changed.get(name, 0)).astype(array.dtype)
        np.testing.assert_array_equal(edited[name], wanted)
        assert np.array_equal(edited[name], array) == (name not in changed)


@pytest.mark.parametrize("kind", ["1", "2"])
def test_units_in_place_of_others_are_written_too(kind: str, tmp_path: Path) -> None:
    """Weights and biases of one block's `fc1` and `fc2`, under each family's names."""
    rng = np.random.default_rng(2)
    start, name = FC2[kind]
    names = {"1": ("fc1", "fc2"), "2": ("c_fc", "c_proj")}[kind]
    shapes = {"fc1.weight": (12, 8), "fc1.bias": (12,), "fc2.weight": (8, 12), "fc2.bias": (8,)}
    before = start + name.format(1).removesuffix(f"{names[1]}.weight")
    keys = {part: f"{before}{names[part[:3] == 'fc2']}{part[3:]}" for part in shapes}
    base = checkpoint(kind, "float32")
    base |= {keys[part]: rng.standard_normal(shape).astype("f") for part, shape in shapes.items()}
    source, target = tmp_path / "sd.safetensors", tmp_path / "edited.safetensors"
    save_file(base, source)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    places = np.array([7, 2, 11, 0], np.int32)
    made_room = Room(places, some(4, 8), some(4), some(8, 12), some(8))
    content = pack({}, Units(1, some(2, 8), some(2, 2), some(2, 8), made_room))
    write_checkpoint(target, source, content, file_hash(source))
    edited = load_file(target)
    changes = content.changes()
    assert len(changes) == 4
    for part, key in keys.items():
        wanted = base[key] + changes[f"text_model.encoder.layers.1.mlp.{part}"]
        np.testing.assert_allclose(edited[key], wanted, rtol=1e-6, atol=1e-6)
    assert [n for n in base if not np.array_equal(base[n], edited[n])] == sorted(
        keys.values(), key=list(base).index
    )


def test_an_edit_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    source, target = tmp_path / "sd.safetensors", tmp_path / "edited.safetensors"
    save_file(checkpoint("1", "float16"), source)
    for deltas, message in (
        ({7: np.ones((8, 12))}, r"no .*layers\.7\.mlp\.fc2\.weight"),
        ({0: np.ones((8, 11))}, "of shape"),
        ({0: np.full((8, 12), 1e6)}, "does not fit float16"),
    ):
        with pytest.raises(UserError, match=message):
            write_checkpoint(target, source, pack(deltas), file_hash(source))
        assert sorted(tmp_path.iterdir()) == [source]
    save_file({"a": np.zeros(2)}, source)
    with pytest.raises(UserError, match="no Stable Diffusion file"):
        write_checkpoint(target, source, pack({0: np.ones((8, 12))}), file_hash(source))


def test_a_file_that_changed_since_it_was_looked_at_is_not_edited(tmp_path: Path) -> None:
    source, target = tmp_path / "sd.safetensors", tmp_path / "edited.safetensors"
    base = checkpoint("1", "float16")
    save_file(base, source)
    looked_at = file_hash(source)
    save_file({name: array + 1 for name, array in base.items()}, source)
    with pytest.raises(UserError, match="was changed while it was read"):
        write_checkpoint(target, source, pack({0: np.ones((8, 12))}), looked_at)
    assert sorted(tmp_path.iterdir()) == [source]
