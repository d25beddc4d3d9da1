"""Values from outside: what an annotation allows passes, all else is one line naming the field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.runtime.typed_values import Length, Range, convert, section

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63)])
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b", 1]
    sizes: Annotated[tuple[Annotated[int, Range(1, 9)], ...], Length(1, 3)] = (1,)


@dataclasses.dataclass(frozen=True)
class Outer:
    one: Inner
    count: Annotated[int, Range(0)] = 0
    share: Annotated[float, Range(0, 1, open=True)] = 0.5
    flag: bool = False
    size: int | tuple[int, int] = 1
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: Any = None
    least: float | None = None


GOOD = {"one": {"kind": "a"}}


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_whole, value))


def is_number(value: object) -> bool:
    whole = is_whole(value) and abs(value) < 2**1000  # pyright: ignore
    return whole or (isinstance(value, float) and math.isfinite(value))


ALLOWED = {
    "count": lambda v: is_whole(v) and v >= 0,
    "share": lambda v: is_number(v) and 0 < v < 1,
    "flag": lambda v: isinstance(v, bool),
    "size": lambda v: is_whole(v) or is_pair(v),
    "words": lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
    "more": lambda v: True,
    "least": lambda v: v is None or is_number(v),
    "one": lambda v: (
        isinstance(v, dict)
        and v.keys() <= {"kind", "sizes"}
        and v.get("kind") in ("a", "b")
        and all(is_whole(x) and 1 <= x <= 9 for x in v.get("sizes", [1]))
    ),
}


@given(st.sampled_from(sorted(ALLOWED)), JSON)
def test_any_value_passes_or_is_one_line_with_the_field(field: str, value: Any) -> None:
    if ALLOWED[field](value):
        found = getattr(section(GOOD | {field: value}, Outer, "file.json"), field)
        wanted = tuple(value) if isinstance(value, list) and field == "size" else value
        assert field == "one" or found == wanted or wanted != wanted
        return
    with pytest.raises(UserError, match=rf"^file\.json\.{field}") as error:
        section(GOOD | {field: value}, Outer, "file.json")
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one": {}}, r"x\.one\.kind is missing"),
        ({"one": {"kind": True}}, r"x\.one\.kind is True; allowed: 'a', 'b', 1"),
        (
            {"one": {"kind": "a", "sizes": []}},
            r"sizes is \[\]; it must be a list of 1 to 3",
        ),
        ({"one": {"kind": "a", "sizes": [1, 10]}}, r"sizes\[1\] is 10; it must be >= 1 and <= 9"),
        ({"size": [1, 2, 3]}, r"x\.size is \[1, 2, 3\]; it must have 2 entries"),
        ({"share": 1}, r"x\.share is 1; it must be > 0 and < 1"),
        ({"shares": 1}, r"x\.shares is unknown; did you mean share\?"),
        ({"words": {"a": 1}}, r"x\.words\.a is 1; it must be text"),
        ({"least": "1"}, r"x\.least is '1'; it must be a number"),
    ],
)
def test_messages_say_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        section(GOOD | change, Outer, "x")


def test_an_integer_passes_for_a_float_and_becomes_one() -> None:
    assert isinstance(convert(3, float, "x"), float)


def test_long_values_are_cut() -> None:
    assert len(shown("a" * 10_000)) < 100
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown([deep]) == "a list too long to print"
    assert shown(10**5000) == "a int too long to print"
