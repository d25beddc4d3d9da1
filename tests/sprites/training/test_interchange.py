import numpy as np

from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.factors import label_array
from emcid_jax.sprites.training.interchange import exchange


def _kind(picture):
    if picture.look is not None:
        return "object"
    return "artist" if picture.profession is None else "profession"


def test_labels_follow_the_name_and_the_context_stays():
    pictures = [caption.picture for caption in sample_captions(200, seed=5)]
    labels = label_array(pictures)
    partner, exchanged, decided = exchange(labels)
    assert sorted(partner) == list(range(200))
    for row, picture in enumerate(pictures):
        other = pictures[partner[row]]
        assert _kind(other) == _kind(picture)
        match _kind(picture):
            case "object":
                wanted = picture._replace(look=other.look)
            case "artist":
                wanted = picture._replace(style=other.style)
            case "profession":
                wanted = picture._replace(profession=other.profession, gender=other.gender)
        np.testing.assert_array_equal(exchanged[row], label_array([wanted])[0])
        told = decided[row] >= 0
        np.testing.assert_array_equal(decided[row, told], exchanged[row, told])
        count = {"object": 3, "artist": 3, "profession": 2}[_kind(picture)]
        assert told.sum() == count


def test_labels_nobody_knows_stay_unknown():
    labels = label_array([caption.picture for caption in sample_captions(300, seed=6)])
    labels[:, -1] = -1
    _, exchanged, decided = exchange(labels)
    assert (exchanged[:, -1] == -1).all()
    assert (decided[:, -1] == -1).all()
