"""Drawing once, resuming, and never reading another run's results: counted with fake models."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emcid_jax.evaluation.drawing.cache import scored_images
from emcid_jax.evaluation.drawing.draw import Draw
from emcid_jax.evaluation.drawing.png import compact, png
from emcid_jax.storage.hashing import fingerprint


class FakeModel:
    """Draws a flat picture that depends on the seed and counts what it was asked for."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.dies_after = dies_after

    def generate(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        if self.dies_after is not None and len(self.batches) == self.dies_after:
            raise KeyboardInterrupt
        self.batches.append(seeds)
        assert len(prompts) == len(seeds)
        return np.stack([np.full((4, 4, 3), seed, np.uint8) for seed in seeds])

    @staticmethod
    def classify(images: np.ndarray) -> np.ndarray:
        share = images[:, 0, 0, 0] / 300
        return np.stack([share, 1 - share], -1).astype(np.float32)

    @property
    def drawn(self) -> list[int]:
        return [seed for batch in self.batches for seed in batch]


DRAWS = [Draw("a tench", seed) for seed in range(10)]


def run(model: FakeModel, folder: Path, depends_on: str = "a" * 64, **options):
    draws = options.pop("draws", DRAWS)
    return scored_images(draws, model.generate, model.classify, 4, folder, depends_on, **options)


def test_each_image_is_drawn_once_and_scored_to_half_precision(tmp_path: Path) -> None:
    model, ticks = FakeModel(), []
    found = run(model, tmp_path, draws=[*DRAWS, *DRAWS], progress=ticks.append)
    assert model.drawn == list(range(10))
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    assert ticks == [0, 4, 4, 2]
    assert list(found) == DRAWS
    for draw in DRAWS:
        np.testing.assert_allclose(found[draw], [draw.seed / 300, 1 - draw.seed / 300], rtol=5e-4)


def test_a_killed_run_resumes_with_the_same_numbers(tmp_path: Path) -> None:
    whole = run(FakeModel(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(FakeModel(dies_after=2), tmp_path / "killed")
    second = FakeModel()
    resumed = run(second, tmp_path / "killed")
    assert second.drawn == [8, 9]
    for draw in DRAWS:
        np.testing.assert_array_equal(resumed[draw], whole[draw])
    third, ticks = FakeModel(), []
    run(third, tmp_path / "killed", progress=ticks.append)
    assert third.drawn == []
    assert ticks == [10]


def test_more_requests_draw_only_what_is_new(tmp_path: Path) -> None:
    run(FakeModel(), tmp_path)
    model = FakeModel()
    more = [Draw("a crane", 3), *DRAWS]
    assert list(run(model, tmp_path, draws=more)) == more
    assert model.drawn == [3]


def test_other_settings_never_read_stored_results(tmp_path: Path) -> None:
    run(FakeModel(), tmp_path, fingerprint("model", 20, 4.0))
    model = FakeModel()
    run(model, tmp_path, fingerprint("model", 21, 4.0))
    assert model.drawn == list(range(10))


def test_a_damaged_chunk_is_drawn_again(tmp_path: Path) -> None:
    whole = run(FakeModel(), tmp_path)
    victim = sorted(tmp_path.glob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:50])
    model = FakeModel()
    again = run(model, tmp_path)
    assert 0 < len(model.drawn) <= 4
    np.testing.assert_array_equal(np.stack(list(again.values())), np.stack(list(whole.values())))
    assert len(run(FakeModel(), tmp_path)) == 10


def test_kept_pictures_are_png_files_and_drawn_again_when_lost(tmp_path: Path) -> None:
    keep = {DRAWS[5]: tmp_path / "pictures" / "five.png"}
    run(FakeModel(), tmp_path, keep=keep)
    with Image.open(keep[DRAWS[5]]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.full((4, 4, 3), 5))
    keep[DRAWS[5]].unlink()
    model = FakeModel()
    run(model, tmp_path, keep=keep)
    assert model.drawn == [5]
    assert keep[DRAWS[5]].exists()


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert run(FakeModel(), tmp_path, draws=[]) == {}


def test_keys_tell_prompt_and_seed_apart() -> None:
    keys = {Draw("a", 1).key, Draw("a", 2).key, Draw("b", 1).key, Draw("1\na", 1).key}
    assert len(keys) == 4


def test_compact_keeps_few_colours_as_they_are() -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 90, 255], np.uint8), (8, 8, 3))
    with Image.open(io.BytesIO(compact(png(pixels)))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)
