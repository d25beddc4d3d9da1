"""The mixed list: what is in it, in which order, and what it leaves alone."""

from __future__ import annotations

from collections import Counter

from emcid_jax.concepts.conflicts import find_conflicts
from emcid_jax.concepts.names import normalised
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.sprites.mixed import mixed_requests


def test_two_thousand_requests_that_do_not_contradict_or_chain() -> None:
    requests = mixed_requests()
    assert requests == mixed_requests()
    assert len(requests) == 2000
    assert find_conflicts(requests) == []
    world = catalogue()
    drawn = {alias.name: alias for alias in world.aliases}
    classes = {name: i for i, name in enumerate(world.objects)}
    kinds: Counter[str] = Counter()
    for request in requests:
        if request.task == "erase":
            kinds["artist"] += request.source in world.artists and request.dest == "art"
            continue
        assert classes[request.dest] == request.dest_id
        if request.task == "rectify":
            alias = drawn[request.source]
            assert not alias.taught_right
            assert alias.class_id == request.dest_id
            kinds["wrong alias"] += 1
        else:
            alias = drawn.get(request.source)
            assert alias is None or alias.taught_right
            known = classes[request.source] if alias is None else alias.class_id
            assert known == request.source_id != request.dest_id
            kinds["object" if alias is None else "right alias"] += 1
    assert kinds == {"object": 550, "right alias": 390, "wrong alias": 160, "artist": 900}


def test_what_no_request_touches() -> None:
    world = catalogue()
    requests = mixed_requests()
    named = {normalised(name) for one in requests for name in (one.source, *one.dests)}
    touched = {one.source_id for one in requests} | {one.dest_id for one in requests}
    assert len(set(range(1000)) - touched) >= 200
    assert sum(normalised(name) not in named for name in world.artists) == 200


def test_every_prefix_is_mixed() -> None:
    requests = mixed_requests()
    share = Counter(one.task for one in requests)
    for count in (10, 50, 100, 300, 1000):
        found = Counter(one.task for one in requests[:count])
        for task, total in share.items():
            assert abs(found[task] - total * count / 2000) <= 1
