"""Resizing against PyTorch and against CLIP's own preprocessing in transformers."""

from __future__ import annotations

import numpy as np
import torch
from transformers import CLIPImageProcessorPil

from emcid_jax.evaluation.judges.resize import BICUBIC, BILINEAR, centred, stretched


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def test_stretched_is_antialiased_and_cut_but_not_rounded() -> None:
    image = picture(60, 90)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    for resample, mode, size in (
        (BICUBIC, "bicubic", (30, 20)),
        (BILINEAR, "bilinear", (30, 20)),
        (BICUBIC, "bicubic", (75, 99)),
    ):
        # PyTorch's own antialiased cubic has the same a = -0.5; without it, a would be -0.75.
        theirs = torch.nn.functional.interpolate(pixels, size, mode=mode, antialias=True)
        ours = stretched(image, size, resample)
        if size > image.shape[:2]:
            assert theirs.max() > 255  # It overshoots, and is cut.
        expected = theirs[0].permute(1, 2, 0).numpy().clip(0, 255)
        np.testing.assert_allclose(ours, expected, atol=2e-3)
    np.testing.assert_array_equal(stretched(image, (60, 90)), image.astype(np.float32))


def test_centred_equals_transformers() -> None:
    for height, width in ((40, 40), (50, 33), (31, 77), (24, 24)):
        image = picture(height, width)
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": 24}, crop_size=24, do_rescale=False, do_normalize=False
        )
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(centred(image, 24), theirs.transpose(1, 2, 0))
