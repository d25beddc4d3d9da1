"""CLIP scores and H_a by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.evaluation.statistics.clip_score import artist_scores, clip_scores


def test_clip_scores_by_hand() -> None:
    images = np.array([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]], np.float32)
    texts = np.array([[4.0, 3.0], [0.0, 7.0], [-1.0, -1.0]], np.float32)
    # cosines 24/25, 0 and -1, whatever the lengths.
    np.testing.assert_allclose(clip_scores(images, texts), [96.0, 0.0, -100.0], atol=1e-12)


def test_artist_scores_by_hand() -> None:
    found = artist_scores(np.array([20.0, 22.0]), np.array([28.0, 28.0, 31.0]))
    assert found.clip_e.value == pytest.approx(21.0)
    assert found.clip_s.value == pytest.approx(29.0)
    assert found.h_a.value == pytest.approx(8.0)
    # The interval spans the extremes of two artists: 20 to 22 from between 28 and 31.
    assert found.h_a.low is not None
    assert found.h_a.high is not None
    assert 6.0 <= found.h_a.low < 8.0 < found.h_a.high <= 11.0
    assert artist_scores(np.array([20.0]), np.array([28.0, 30.0])).h_a.low is None


def test_published_h_a() -> None:
    # MACE's 100 artists: CLIP_e 22.59, CLIP_s 28.58.
    assert artist_scores(np.array([22.59]), np.array([28.58])).h_a.value == pytest.approx(5.99)
