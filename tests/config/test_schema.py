"""Settings: what the door lets in, and what it says when it does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from emcid_jax import config as settings
from emcid_jax.config import EditConfig, Range, RequestsConfig, from_config_dict, to_config_dict
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.ablate import AblateConfig

GOOD = EditConfig(requests=RequestsConfig(path="requests.json"))


def altered(field: str, value: Any) -> dict[str, Any]:
    """GOOD as nested dicts with one field changed."""
    values = dataclasses.asdict(GOOD)
    *sections, name = field.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[name] = value
    return values


def test_config_dict_round_trip() -> None:
    assert from_config_dict(to_config_dict(GOOD).to_dict(), EditConfig) == GOOD


def test_the_section_run_of_a_base_has_two_names() -> None:
    values = to_config_dict(AblateConfig(base=GOOD))
    assert from_config_dict(values.to_dict(), AblateConfig) == AblateConfig(base=GOOD)
    values.run.save_every, values.base.run.distributed = 3, True
    run = from_config_dict(values.to_dict(), AblateConfig).base.run
    assert (run.save_every, run.distributed) == (3, True)
    apart = values.to_dict() | {"run": {"save_every": 4}}
    with pytest.raises(UserError, match=r"config\.run is unknown"):
        from_config_dict(apart, AblateConfig)


def test_missing_fields_take_defaults() -> None:
    assert from_config_dict({"requests": {"path": "requests.json"}}, EditConfig) == GOOD


def test_whole_numbers_pass_for_numbers_and_lists_for_tuples() -> None:
    values = altered("stage_two.layers", [9, 10])
    values["stage_one"]["learning_rate"] = 1
    config = from_config_dict(values, EditConfig)
    assert config.stage_two.layers == (9, 10)
    assert config.stage_one.learning_rate == 1.0
    assert isinstance(config.stage_one.learning_rate, float)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stage_one.steps", 0, [">= 1"]),
        ("stage_one.steps", 2.0, ["whole number"]),
        ("stage_one.steps", True, ["whole number"]),
        ("stage_one.learning_rate", 0.0, ["> 0"]),
        ("stage_one.learning_rate", float("inf"), ["finite"]),
        ("stage_one.learning_rate", "fast", ["a number"]),
        ("stage_one.objective", "ablate", ["'ablate-dest'", "'esd'"]),
        ("stage_two.edit_weight", 1.0, ["> 0", "< 1"]),
        ("stage_two.edit_weight", float("nan"), ["finite"]),
        ("stage_two.layers", (), ["ascending"]),
        ("stage_two.layers", (10, 9), ["ascending"]),
        ("stage_two.layers", (10, 10), ["ascending"]),
        ("stage_two.layers", (7, 8), ["stage_one.layer", "10"]),
        ("stage_two.layers", 10, ["tuple"]),
        ("moments.seed", 2**32, ["4.29497e+09"]),
        ("model.path", 3, ["text"]),
        ("run.compile_cache", 1, ["True or False"]),
        ("requests.path", "", ["--config.requests.path"]),
        ("stage_one", 3, ["section"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    field: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        from_config_dict(altered(field, value), EditConfig)
    message = str(caught.value)
    assert f"config.{field} is " in message
    assert "\n" not in message
    for word in [*words, repr(value) if value != "" else ""]:
        assert word in message


def test_an_element_is_named_by_its_place() -> None:
    with pytest.raises(UserError, match=r"config\.requests\.templates\[1\] is 'a photo'; .*{}"):
        from_config_dict(altered("requests.templates", ("{}", "a photo")), EditConfig)
    with pytest.raises(UserError, match=r"config\.stage_two\.layers\[1\] is -2; it must be >= 0"):
        from_config_dict(altered("stage_two.layers", (1, -2)), EditConfig)


def test_an_unknown_field_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(UserError) as caught:
        from_config_dict(altered("stage_one.stpes", 3), EditConfig)
    message = str(caught.value)
    assert message.startswith("config.stage_one.stpes is unknown; did you mean steps? allowed:")
    assert "learning_rate" in message


def test_range_borders() -> None:
    assert 0 in Range(0, 1)
    assert 1 in Range(0, 1)
    assert 0 not in Range(0, 1, open=True)
    assert 1 not in Range(0, 1, open=True)
    assert 0.5 in Range(0, 1, open=True)
    assert float("nan") not in Range()


def test_every_field_is_documented() -> None:
    lines = settings.describe(EditConfig).splitlines()
    fields = [i for i, line in enumerate(lines) if line.startswith("  config.")]
    assert len(fields) > 40
    for index in fields:
        assert len(lines[index + 1].strip()) > 10, lines[index]
    assert "  config.stage_one.learning_rate = 0.2" in lines
