from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.caption_batches import make_batches
from emcid_jax.editing.moments.second_moment import (
    Progress,
    SecondMoments,
    accumulate,
    finish,
    read_moments,
    write_moments,
)
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh, place, replicated, sharded

LAYERS = (0, 2, 3)


def brute_force(clip, ids) -> tuple[dict[int, np.ndarray], int]:
    """One caption at a time, one matrix per layer, tokens up to the first end token."""
    sums, count = {layer: np.zeros((64, 64)) for layer in LAYERS}, 0
    for row in ids:
        length = list(row).index(clip.config.eos_token_id) + 1
        keys = clip.forward(row[None]).keys
        for layer in LAYERS:
            rows = keys[layer][0, :length]
            sums[layer] += rows.T @ rows
        count += length
    return {layer: total / count for layer, total in sums.items()}, count


def run(clip, ids, **options) -> SecondMoments:
    return finish(steps(clip, ids, **options)[-1])


def float32(clip) -> dict:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), clip.params)


def walk(clip, ids, layers=LAYERS, batch=32, mesh=None, **options) -> Iterator[Progress]:
    """One device unless a mesh is given."""
    mesh = make_mesh(jax.devices()[:1]) if mesh is None else mesh
    model, params = ClipTextModel(clip.config), float32(clip)
    return accumulate(model, params, ids, layers, batch=batch, chunk=3, mesh=mesh, **options)


def steps(clip, ids, **options) -> list[Progress]:
    return list(walk(clip, ids, **options))


def assert_close(result: dict[int, np.ndarray], expected: dict[int, np.ndarray], bar: float):
    assert result.keys() == expected.keys()
    for layer, matrix in expected.items():
        error = np.linalg.norm(result[layer] - matrix) / np.linalg.norm(matrix)
        assert error < bar, (layer, error)


def test_equals_brute_force(numpy_clip, captions):
    moments = run(numpy_clip, captions)
    expected, count = brute_force(numpy_clip, captions)
    assert moments.count == count
    assert_close(moments.moments, expected, 1e-6)


def test_legacy_end_token_is_the_highest_id(numpy_clip, captions):
    """Configs of SD 1.x and 2.x say eos_token_id 2."""
    legacy = dataclasses.replace(
        numpy_clip, config=dataclasses.replace(numpy_clip.config, eos_token_id=2)
    )
    assert run(legacy, captions[:40]).count == run(numpy_clip, captions[:40]).count


def test_order_and_padding_do_not_matter(numpy_clip, captions):
    shuffled = captions[np.random.default_rng(3).permutation(len(captions))].copy()
    end = np.argmax(shuffled == 58, axis=1)
    shuffled[np.arange(16) > end[:, None]] = 0  # the pad token of SD 2.x
    first, second = run(numpy_clip, captions), run(numpy_clip, shuffled[:, :14])
    assert first.provenance == second.provenance
    for layer in LAYERS:
        np.testing.assert_array_equal(first.moments[layer], second.moments[layer])


def test_resumed_equals_uninterrupted_to_the_bit(numpy_clip, captions):
    whole = steps(numpy_clip, captions)
    assert len(whole) > 3
    for done, interrupted in enumerate(whole[:3], start=1):
        rest = steps(numpy_clip, captions, start=interrupted)
        assert len(rest) == len(whole) - done
        for layer in LAYERS:
            np.testing.assert_array_equal(rest[-1].sums[layer], whole[-1].sums[layer])
        assert rest[-1].count == whole[-1].count
    assert finish(steps(numpy_clip, captions, start=whole[-2])[-1]).count == whole[-1].count


def test_yielded_sums_never_change(numpy_clip, captions):
    ahead = walk(numpy_clip, captions)
    first = next(ahead)
    kept = first.sums[2].copy()
    list(ahead)
    np.testing.assert_array_equal(first.sums[2], kept)


def test_provenance_and_refusals(numpy_clip, captions):
    progress = steps(numpy_clip, captions)[0]
    assert progress.provenance.model_hash == params_hash(float32(numpy_clip))
    assert progress.provenance.captions == 300
    assert progress.provenance.layers == LAYERS
    with pytest.raises(UserError, match="caption_hash"):
        steps(numpy_clip, captions[1:], start=progress)
    with pytest.raises(UserError, match="layers"):
        steps(numpy_clip, captions, layers=(0, 1), start=progress)
    with pytest.raises(UserError, match="batch 32, this run has 64"):
        steps(numpy_clip, captions, batch=64, start=progress)
    with pytest.raises(UserError, match="blocks 0 to 3"):
        steps(numpy_clip, captions, layers=(0, 4))
    with pytest.raises(UserError, match="at least one"):
        steps(numpy_clip, captions[:0])
    with pytest.raises(ValueError, match="batches are done"):
        finish(progress)


def test_keys_that_overflow_are_named_at_the_first_chunk(numpy_clip, captions):
    params = float32(numpy_clip)
    fc1 = params["text_model"]["encoder"]["layers.1"]["mlp"]["fc1"]
    fc1["kernel"] = fc1["kernel"] * np.float32(1e30)
    with pytest.raises(UserError, match=r"second moments of block 1 of key 0 .*are not finite"):
        next(accumulate(ClipTextModel(numpy_clip.config), params, captions, (0, 1), chunk=1))


def test_file_round_trip(numpy_clip, captions, tmp_path):
    moments = run(numpy_clip, captions[:50])
    path = tmp_path / "folder" / "moments.safetensors"
    write_moments(path, moments)
    back = read_moments(path)
    assert (back.count, back.provenance) == (moments.count, moments.provenance)
    for layer in LAYERS:
        np.testing.assert_array_equal(back.moments[layer], moments.moments[layer])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    (tmp_path / "bad").write_text("no")
    for bad in (tmp_path / "bad", tmp_path / "absent"):
        with pytest.raises(UserError, match="second-moment"):
            read_moments(bad)


def test_factor_is_kept(numpy_clip, captions):
    moments = run(numpy_clip, captions)
    assert moments.moment(2).factor is moments.moment(2).factor


def test_lent_moments_keep_their_factors(numpy_clip, captions):
    moments = run(numpy_clip, captions)
    lent = moments.lent_to("another model")
    assert lent.provenance.model_hash == "another model"
    assert moments.provenance.model_hash != "another model"
    assert lent.moment(0).factor is moments.moment(0).factor
    np.testing.assert_array_equal(lent.moments[2], moments.moments[2])


def test_eight_devices_give_the_same(numpy_clip, captions):
    one = run(numpy_clip, captions)
    eight = run(numpy_clip, captions, mesh=make_mesh())
    assert eight.count == one.count
    assert eight.provenance == one.provenance
    assert_close(eight.moments, one.moments, 1e-6)


def test_accumulating_needs_no_communication(numpy_clip, captions):
    """The only collective is the sum at the end of a chunk."""
    mesh, layers = make_mesh(), (0, 2)
    assert mesh.size == 8
    model = ClipTextModel(numpy_clip.config)
    params = jax.device_put(float32(numpy_clip), replicated(mesh))
    sums = second_moment._zeros(model, layers, mesh)
    lengths = np.full(32, captions.shape[1])
    (batch,) = make_batches(captions[:32], lengths, 32, mesh.size)
    placed = place(batch, sharded(mesh))
    adding = second_moment._add.lower(model, layers, mesh, params, sums, *placed)
    collectives = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    text = adding.compile().as_text()
    assert not [name for name in collectives if name in text]
    assert "all-reduce" in second_moment._total.lower(mesh, sums).compile().as_text()
