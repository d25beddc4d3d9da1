import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.sprites.training.loop import Recipe, fit


class KilledError(Exception):
    pass


def _batches(stop: int | None):
    def batch_at(step: int):
        if step == stop:
            raise KilledError
        return np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)

    return batch_at


def _loss(params, batch, key):
    noisy = batch + 0.01 * jax.random.normal(key, batch.shape)
    wanted = noisy @ jnp.array([1.0, -2.0, 3.0])
    return jnp.mean((noisy @ params["w"] - wanted) ** 2)


def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path):
    recipe = Recipe(steps=12, batch=8, learning_rate=0.1, warmup=2)
    start = {"w": jnp.zeros(3)}
    whole = fit("part", _loss, start, _batches(None), recipe, tmp_path / "a", save_every=4)
    with pytest.raises(KilledError):
        fit("part", _loss, start, _batches(6), recipe, tmp_path / "b", save_every=4)
    resumed = fit("part", _loss, start, _batches(None), recipe, tmp_path / "b", save_every=4)
    np.testing.assert_array_equal(whole["w"], resumed["w"])


def test_it_learns(tmp_path):
    recipe = Recipe(steps=400, batch=8, learning_rate=0.1, warmup=5, average=0.9)
    found = fit("part", _loss, {"w": jnp.zeros(3)}, _batches(None), recipe, tmp_path)
    np.testing.assert_allclose(found["w"], [1, -2, 3], atol=0.05)
