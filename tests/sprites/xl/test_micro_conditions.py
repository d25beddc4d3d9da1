"""Blurred and cropped pictures, by PyTorch's resizing and by brute force."""

import numpy as np
import torch

from emcid_jax.sprites.xl.micro_conditions import varied


def test_pictures_show_what_their_sizes_say():
    pictures = np.random.default_rng(5).integers(0, 256, size=(300, 64, 64, 3), dtype=np.uint8)
    shown, sizes = varied(pictures, seed=9)
    rows, columns = np.mgrid[:64, :64]
    kinds = []
    for picture, found, (height, width, top, left, *target) in zip(
        pictures, shown, sizes.astype(int), strict=True
    ):
        assert target == [64, 64]
        if height < 64:
            assert (height, top, left) == (width, 0, 0)
            # A pixel of the small picture is the mean of those whose middle lies in it.
            of = np.floor((np.arange(64) + 0.5) * height / 64)
            mean = (of == np.arange(height)[:, None]) / np.bincount(of.astype(int))[:, None]
            small = torch.from_numpy(np.einsum("ij,jkc,lk->cil", mean, picture, mean))[None]
            large = torch.nn.functional.interpolate(small, size=64, mode="bilinear")
            # Pillow rounds four times: after the columns and the rows, there and back.
            assert np.abs(large[0].permute(1, 2, 0).numpy() - found).max() <= 2.5
        else:
            cut = picture[np.minimum(rows + top, 63), np.minimum(columns + left, 63)]
            np.testing.assert_array_equal(found, cut)
        kinds.append("blurred" if height < 64 else "cropped" if top or left else "plain")
    shares = [kinds.count(kind) / 300 for kind in ("plain", "blurred", "cropped")]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.08)


def test_the_pictures_given_stay_as_they_are():
    pictures = np.random.default_rng(6).integers(0, 256, size=(20, 64, 64, 3), dtype=np.uint8)
    kept = pictures.copy()
    varied(pictures, seed=1)
    np.testing.assert_array_equal(pictures, kept)
