from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.conflicts import find_conflicts, require_consistent
from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.runtime.errors import UserError

NAMES = "abcdef"


def edits(*pairs: tuple[str, str]) -> list[EditRequest]:
    return [
        EditRequest(source, dest, ("a {}",), origin=f"m.csv:{line}")
        for line, (source, dest) in enumerate(pairs, 2)
    ]


def found(*pairs: tuple[str, str]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(c.kind, c.severity, c.requests) for c in find_conflicts(edits(*pairs))]


def test_requests_that_go_together() -> None:
    assert found(("cat", "dog"), ("cow", "dog"), ("cats", "cat food")) == []


def test_one_source_with_two_destinations_is_an_error() -> None:
    assert found(("cat", "dog"), ("cat", "cow")) == [("contradiction", "error", (0, 1))]


def test_repeated_requests_are_a_warning() -> None:
    assert found(("cat", "dog"), ("x", "y"), ("Cat", "DOG")) == [("duplicate", "warning", (0, 2))]


def test_a_destination_equal_to_its_source_is_an_error() -> None:
    assert found(("cat", " CAT")) == [("self", "error", (0,))]


def test_chains_and_cycles_are_warnings() -> None:
    assert found(("a", "b"), ("b", "c")) == [("chain", "warning", (0, 1))]
    assert found(("a", "b"), ("b", "a")) == [("cycle", "warning", (0, 1))]
    assert found(("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")) == [
        ("chain", "warning", (0, 1)),
        ("cycle", "warning", (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Gustave Doré", "gustave dore\u0301"),
        ("Monet", "MONET"),
        ("a  cat\n", "A cat"),
        ("Straße", "STRASSE"),
        ("ᾴ", "ᾼ\u0301"),
        ("Georgia O’Keeffe", "GEORGIA O’KEEFFE"),
    ],
)
def test_names_compare_by_what_the_tokenizer_sees(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert found((one, "x"), (other, "y")) == [("contradiction", "error", (0, 1))]


def test_different_letters_stay_different() -> None:
    assert found(("Dore", "x"), ("Doré", "y")) == []


def test_debias_compares_all_destinations_and_shares() -> None:
    def boss(dest: tuple[str, ...], ratios: tuple[float, ...]) -> EditRequest:
        return EditRequest("boss", dest, ("a {}",), "debias", ratios=ratios)

    half = boss(("a", "b"), (0.5, 0.5))
    assert find_conflicts([half, boss(("B", "a"), (0.5, 0.5))])[0].kind == "duplicate"
    assert find_conflicts([half, boss(("a", "b"), (0.3, 0.7))])[0].kind == "contradiction"
    assert find_conflicts([half, *edits(("a", "z"))])[0].kind == "chain"


def test_messages_are_one_line_and_name_both_origins() -> None:
    pairs = [("a", "b"), ("b", "c"), ("a", "d"), ("p", "q"), ("q", "p"), ("s", "s"), ("p", "q")]
    for conflict in find_conflicts(edits(*pairs)):
        assert "\n" not in conflict.message
        for index in conflict.requests:
            assert f"m.csv:{index + 2}" in conflict.message


def test_errors_are_raised_together_and_warnings_returned() -> None:
    warnings = require_consistent(edits(("a", "b"), ("b", "c")))
    assert [conflict.kind for conflict in warnings] == ["chain"]
    with pytest.raises(UserError) as caught:
        require_consistent(edits(("a", "b"), ("a", "c"), ("d", "d"), ("b", "e")))
    assert len(str(caught.value).splitlines()) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)),
        max_size=9,
        unique_by=lambda p: p[0],
    )
)
@settings(deadline=None)
def test_chains_and_cycles_equal_brute_force(pairs: list[tuple[str, str]]) -> None:
    """Each name edited once: cycles by following the destinations, chains are the other links."""
    follows = dict(pairs)
    index = {source: i for i, (source, _) in enumerate(pairs)}
    cycles = set()
    for source in follows:
        walk = [source]
        while walk[-1] in follows and follows[walk[-1]] not in walk:
            walk.append(follows[walk[-1]])
        if follows.get(walk[-1]) == source and len(walk) > 1:
            cycles.add(tuple(sorted(index[name] for name in walk)))
    in_cycle = {frozenset(pair) for cycle in cycles for pair in itertools.permutations(cycle, 2)}
    chains = {
        (index[a], index[b])
        for a, b in pairs
        if a != b and b in follows and frozenset((index[a], index[b])) not in in_cycle
    }
    conflicts = find_conflicts(edits(*pairs))
    assert {tuple(sorted(c.requests)) for c in conflicts if c.kind == "cycle"} == cycles
    assert {c.requests for c in conflicts if c.kind == "chain"} == chains
    assert {c.requests for c in conflicts if c.kind == "self"} == {
        (index[a],) for a, b in pairs if a == b
    }


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=9))
@settings(deadline=None)
def test_cycles_with_repeated_sources_equal_the_transitive_closure(
    pairs: list[tuple[str, str]],
) -> None:
    reach = np.zeros((len(NAMES), len(NAMES)), bool)
    sources = {source for source, _ in pairs}
    for source, dest in pairs:
        if source != dest and dest in sources:
            reach[NAMES.index(source), NAMES.index(dest)] = True
    for middle in range(len(NAMES)):
        reach |= reach[:, middle : middle + 1] & reach[middle]
    groups = {
        frozenset(NAMES[j] for j in np.flatnonzero(reach[i] & reach[:, i]))
        for i in range(len(NAMES))
    }
    cycles = {
        frozenset(pairs[i][0] for i in conflict.requests)
        for conflict in find_conflicts(edits(*pairs))
        if conflict.kind == "cycle"
    }
    assert cycles == {group for group in groups if len(group) > 1}


def test_a_long_chain_needs_no_recursion() -> None:
    links = [(f"n{i}", f"n{i + 1}") for i in range(5000)]
    conflicts = find_conflicts(edits(*links))
    assert len(conflicts) == 4999
    assert {conflict.kind for conflict in conflicts} == {"chain"}
    (cycle,) = find_conflicts(edits(*links, ("n5000", "n0")))
    assert (cycle.kind, len(cycle.requests)) == ("cycle", 5001)
