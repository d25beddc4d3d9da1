"""Names of machines."""

from __future__ import annotations

import pytest

from emcid_jax.planning.machines import EXAMPLES, GIB, find_target
from emcid_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "kind", "devices", "tera"),
    [
        ("v5e:2x4", "tpu", 8, 197),
        ("v6e:2x4", "tpu", 8, 918),
        ("tpu7x:2x2x1", "tpu", 8, 2307 / 2),  # Two devices a chip, each with half of it.
        ("tpu7x:2x2x2", "tpu", 16, 2307 / 2),
        ("v4:2x2x2", "tpu", 8, 275),
        ("v5p:2x2x1", "tpu", 4, 459),
        ("h200", "gpu", 1, 989),
    ],
)
def test_published_figures(name: str, kind: str, devices: int, tera: float) -> None:
    target = find_target(name)
    assert (target.name, target.kind, target.devices) == (name, kind, devices)
    assert target.chip.flops["bfloat16"] == tera * 1e12
    assert 15 * GIB < target.chip.memory < 141e9


def test_every_example_is_known() -> None:
    assert {find_target(name).name for name in EXAMPLES} == set(EXAMPLES)


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:", "tpu7x", "v9z:2x2", "h200:2", "a100", "v5e:2x", "cpu:1", "V5E:2x4"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"config\.target is .*not known; e\.g\. v5e:2x4"):
        find_target(name)
