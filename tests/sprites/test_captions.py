import numpy as np

from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.catalogue import GENDERS, PROFESSIONS, catalogue


def test_captions_name_what_their_picture_shows():
    world = catalogue()
    drawn = {name: world.looks[i] for i, name in enumerate(world.objects)}
    drawn |= {alias.name: world.looks[alias.drawn] for alias in world.aliases}
    styles = dict(zip(world.artists, world.styles, strict=True))
    kinds = {"object": 0, "artist": 0, "figure": 0}
    for caption in sample_captions(3000, seed=11):
        assert caption.subject in caption.text
        picture = caption.picture
        if picture.look is not None:
            kinds["object"] += 1
            assert drawn[caption.subject] == picture.look
        elif picture.profession is not None:
            kinds["figure"] += 1
            assert PROFESSIONS[picture.profession] in caption.subject
            for gender in GENDERS:
                if caption.subject.split()[0] == gender:
                    assert GENDERS[picture.gender] == gender
        elif picture.style is not None and picture.style[0] >= 0:
            kinds["artist"] += 1
            assert styles[caption.subject] == picture.style
    assert min(kinds.values()) > 200


def test_genders_follow_the_skew_when_unnamed():
    world = catalogue()
    counts = np.zeros((len(PROFESSIONS), 2))
    for caption in sample_captions(40_000, seed=3):
        if caption.picture.profession is not None and "male" not in caption.subject:
            counts[caption.picture.profession, caption.picture.gender] += 1
    share = counts[:, 0] / counts.sum(1)
    assert np.corrcoef(share, world.female_share)[0, 1] > 0.9


def test_same_seed_same_captions():
    assert sample_captions(50, seed=4) == sample_captions(50, seed=4)
    assert sample_captions(50, seed=4) != sample_captions(50, seed=5)
