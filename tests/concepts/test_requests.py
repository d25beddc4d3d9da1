from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from emcid_jax.concepts.requests import EditRequest, RequestError, with_validation
from emcid_jax.runtime.errors import Problem, UserError, shown

GOOD: dict[str, Any] = {
    "source": "cat",
    "dest": "dog",
    "templates": ("a {}",),
    "origin": "m.json:3",
}
DEBIAS = {"task": "debias", "dest": ("a male cat", "a female cat"), "ratios": (0.5, 0.5)}


def test_requests_compare_by_what_they_ask() -> None:
    request = EditRequest(**GOOD)
    assert request == EditRequest(**GOOD | {"origin": "other.csv:9"})
    assert hash(request) == hash(EditRequest(**GOOD | {"origin": "other.csv:9"}))
    assert request != EditRequest(**GOOD | {"seed": 1})
    assert (request.task, request.seed, request.weight) == ("update", 0, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.source = "bird"  # type: ignore[misc]


def test_destinations_are_one_or_those_of_debias() -> None:
    assert EditRequest(**GOOD).dests == ("dog",)
    assert EditRequest(**GOOD | DEBIAS).dests == ("a male cat", "a female cat")


def test_erase_may_leave_the_destination_empty() -> None:
    assert EditRequest(**GOOD | {"task": "erase", "dest": ""}).dests == ("",)


@pytest.mark.parametrize(
    ("change", "field", "part"),
    [
        ({"source": ""}, "source", "is empty"),
        ({"source": " \t"}, "source", "is empty"),
        ({"source": "[EOS]"}, "source", "global edits are not supported ('[EOS]')"),
        ({"source": " [cls] "}, "source", "global edits"),
        ({"dest": ""}, "dest", "is empty"),
        ({"dest": "[CLS]"}, "dest", "global edits"),
        ({"dest": ("a", "b")}, "dest", "task update takes one destination"),
        ({"ratios": (1.0,)}, "ratios", "only task debias"),
        ({"templates": ()}, "templates", "is empty"),
        ({"templates": ("a photo",)}, "templates", "has no slot {} ('a photo')"),
        ({"templates": ("{} and {}",)}, "templates", "has 2 slots"),
        ({"seed": -1}, "seed", "is not a seed (-1)"),
        ({"seed": 2**32}, "seed", "is not a seed"),
        ({"seed": True}, "seed", "is not a seed (True)"),
        ({"weight": 0.0}, "weight", "is not a positive number"),
        ({"weight": float("nan")}, "weight", "is not a positive number (nan)"),
        ({"weight": float("inf")}, "weight", "is not a positive number"),
        ({"source_id": -3}, "source_id", "is not a class id"),
        ({"seeds": (1, 2)}, "seeds", "has 2 seeds"),
        ({"seeds": (1,), "validation_templates": ("x", "y")}, "seeds", "has 1 seeds"),
        ({"validation_templates": ("{} {}",)}, "validation_templates", "has 2 slots"),
        ({"validation_templates": (" ",)}, "validation_templates", "is not a prompt"),
        ({"image_paths": ("",)}, "image_paths", "is not a path"),
        (DEBIAS | {"dest": "x"}, "dest", "at least two destinations"),
        (DEBIAS | {"dest": ("x",)}, "dest", "at least two destinations"),
        (DEBIAS | {"dest": ("x", "")}, "dest", "is empty"),
        (DEBIAS | {"ratios": ()}, "ratios", "has the wrong length"),
        (DEBIAS | {"ratios": (0.5, 0.6)}, "ratios", "do not sum to 1"),
        (DEBIAS | {"ratios": (1.5, -0.5)}, "ratios", "has a bad share"),
    ],
)
def test_each_bad_field_is_one_line(change: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        EditRequest(**GOOD | change)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"m.json:3: {field}: ")
    assert part in line
    assert " — " in line


def test_unknown_task_names_the_choices() -> None:
    # The annotation forbids it, so the check is reached only from files; jaxtyping guards the rest.
    with pytest.raises((UserError, TypeError)):
        EditRequest(**GOOD | {"task": "rename"})


def test_all_problems_of_a_request_are_raised_together() -> None:
    with pytest.raises(RequestError) as caught:
        EditRequest(**GOOD | {"source": "", "templates": ("x", "y"), "weight": -1.0})
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["source", "templates", "templates", "weight"]
    assert len(str(caught.value).splitlines()) == 4


def test_values_stay_on_one_line() -> None:
    line = Problem("dest", "is odd", "two\nlines" + "x" * 500, "shorten it").line("f:1")
    assert "\n" not in line
    assert len(line) < 150
    assert shown("short") == "'short'"


def test_validation_comes_from_the_namesake() -> None:
    train = [EditRequest(**GOOD, seeds=(1,)), EditRequest(**GOOD | {"source": "cow"})]
    other = EditRequest(**GOOD, validation_templates=("x {}", "y"), seeds=(1, 2))
    merged = with_validation(train, [other])
    assert merged[0] == dataclasses.replace(
        train[0], validation_templates=("x {}", "y"), seeds=(1, 2)
    )
    assert merged[0].origin == "m.json:3"
    assert merged[1] == train[1]
