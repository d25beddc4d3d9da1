import numpy as np
import pytest

from emcid_jax.sprites.catalogue import ART, PROFESSIONS, Look, Picture, Style, catalogue
from emcid_jax.sprites.drawing import contact_sheet, draw


def _mean_image(picture: Picture, draws: int = 4) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.mean([draw(picture, rng).astype(float) for _ in range(draws)], axis=0)


def test_the_same_seed_draws_the_same_image():
    picture = Picture(look=catalogue().looks[3], scene=2)
    first, second = (draw(picture, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != draw(picture, np.random.default_rng(6)))


@pytest.mark.parametrize("field", [0, 1, 2])
def test_every_value_of_a_look_can_be_told_from_the_others(field):
    base = [0, 0, 0]
    count = (20, 10, 5)[field]
    images = []
    for value in range(count):
        base[field] = value
        images.append(_mean_image(Picture(look=Look(*base))))
    gaps = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
    # Place and size jitter alone moves the mean image by less than this.
    assert min(gaps) > 2.5


@pytest.mark.parametrize("field", [0, 1, 2])
def test_every_value_of_a_style_can_be_told_from_the_others(field):
    base = [0, 0, 0]
    images = []
    for value in range((11, 10, 10)[field]):
        base[field] = value
        images.append(draw(Picture(style=Style(*base)), np.random.default_rng(0)).astype(float))
    images.append(draw(Picture(style=ART), np.random.default_rng(0)).astype(float))
    gaps = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(gaps) > 4


def test_gender_is_visible_in_every_profession():
    for profession in range(len(PROFESSIONS)):
        female, male = (_mean_image(Picture(profession=profession, gender=g)) for g in (0, 1))
        assert np.abs(female - male).mean() > 4


def test_a_figure_needs_a_gender():
    with pytest.raises(ValueError, match="gender"):
        draw(Picture(profession=3), np.random.default_rng(0))


def test_contact_sheet_places_images_in_reading_order():
    images = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 50, 100)])
    sheet = np.asarray(contact_sheet(images, 2))
    assert sheet.shape == (140, 140, 3)
    assert [sheet[30, 30, 0], sheet[30, 100, 0], sheet[100, 30, 0]] == [0, 50, 100]
