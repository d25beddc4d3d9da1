import numpy as np

from emcid_jax.sprites.training.loop import Recipe
from emcid_jax.sprites.xl.unet_rows import XlData, xl_rows


def test_rows_belong_together_and_empty_ones_are_zeros():
    marks = np.arange(1, 41, dtype=np.float32)
    data = XlData(
        np.ones((40, 2, 2, 4), np.float32) * marks[:, None, None, None],
        np.zeros((40, 2, 2, 4), np.float32),
        (
            np.ones((40, 3, 2), np.float16) * marks[:, None, None],
            -np.ones((40, 3, 1), np.float16) * marks[:, None, None],
        ),
        np.ones((40, 5), np.float16) * marks[:, None],
        np.ones((40, 6), np.float32) * marks[:, None],
    )
    mean, _, (text, pooled, sizes) = xl_rows(data, Recipe(9, 3000, 0.1, seed=4))(2)
    row = mean[:, 0, 0, 0]
    np.testing.assert_array_equal(sizes, np.tile(row[:, None], 6))
    empty, unpooled = text[:, 0, 0] == 0, pooled[:, 0] == 0
    wanted = np.where(empty[:, None], 0, row[:, None] * np.array([1, 1, -1], np.float32))
    np.testing.assert_array_equal(text, np.tile(wanted[:, None], (1, 3, 1)))
    np.testing.assert_array_equal(pooled, np.where(unpooled, 0, row)[:, None].repeat(5, 1))
    assert unpooled[empty].all()
    np.testing.assert_allclose(
        [empty.mean(), unpooled[~empty].mean(), len(set(row)) / 40], [0.1, 0.5, 1], atol=0.05
    )
