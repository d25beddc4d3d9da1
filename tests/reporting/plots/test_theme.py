"""Names in figures: what people call things is no formula and no command."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.reporting.plots.curves import Curves, Point, figure
from emcid_jax.reporting.plots.heat_maps import Panel, heat_maps
from emcid_jax.reporting.plots.text_space import heat_map
from emcid_jax.reporting.plots.theme import name_text


@pytest.mark.parametrize(
    "name", [r"$\frac{a$ and $", "$$", "a $1 bill and a $2 bill", r"\$x$", "$"]
)
def test_no_name_is_a_formula(name: str) -> None:
    from matplotlib.text import Text

    assert not Text()._preprocess_math(name_text(name))[1]
    assert Text()._preprocess_math(name_text(name))[0] == name
    one = np.ones((1, 1), np.float32)
    assert b"</svg>" in heat_map([name, "dog"], [name], np.ones((2, 1), np.float32))
    assert b"</svg>" in figure([Curves(name, {name: [Point(1, 0.5)]})], [name])
    assert heat_maps([Panel(name, one, [name], [name], "", "")]).startswith(b"\x89PNG")


def test_names_are_short_and_printable() -> None:
    assert name_text("dog\x1b[2J\nold") == r"dog\x1b[2J old"
    assert name_text("a" * 30) == "a" * 27 + "…"
