from emcid_jax.sprites.catalogue import COLOURS, SHAPES, TEXTURES, catalogue


def test_every_concept_is_unique():
    world = catalogue()
    assert len({name.lower() for name in world.objects}) == 1000
    assert set(world.looks) == {
        (s, c, t)
        for s in range(len(SHAPES))
        for c in range(len(COLOURS))
        for t in range(len(TEXTURES))
    }
    assert len({name.lower() for name in world.artists}) == len(world.artists) == 1100
    assert len(set(world.styles)) == 1100


def test_aliases_belong_to_one_class_and_a_fifth_is_taught_wrong():
    world = catalogue()
    names = [alias.name.lower() for alias in world.aliases]
    assert len(set(names)) == len(names)
    assert not set(names) & {name.lower() for name in world.objects}
    for alias in world.aliases:
        assert alias.name in world.labels[alias.class_id].split(", ")
    wrong = sum(not alias.taught_right for alias in world.aliases)
    assert 0.15 < wrong / len(world.aliases) < 0.25


def test_imagenet_ids():
    world = catalogue()
    assert world.objects[0] == "tench"
    assert world.objects[207] == "golden retriever"
    assert world.objects[999] == "toilet tissue"
    # Two classes share a name with an earlier one.
    assert world.objects[134] == "crane"
    assert world.objects[517] != "crane"
