"""The pages without images, from plain data: what they show, and names that look like code."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from emcid_jax.editing.diagnostics.predicted_conflicts import (
    Collision,
    KeyMap,
    Neighbour,
    Prediction,
)
from emcid_jax.editing.diagnostics.targets_reached import Reach
from emcid_jax.evaluation.text_space import measure
from emcid_jax.reporting.pages.text_space import SHOWN, conflicts_html, text_report_html

EVIL = r"""<script>alert(1)</script> " ' {{7*7}} {% raw %} &amp; $\frac{a$"""


class Page(HTMLParser):
    """The text and the tags that a browser reads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def prediction(names: int = 3) -> Prediction:
    edits = [EVIL, *(f"edit {i}" for i in range(1, names))]
    cosines = np.eye(names + 1, names)
    return Prediction(
        collisions=(Collision((EVIL, "edit 1"), 0.975, 0.25),),
        kept=(Neighbour(EVIL, "edit 1", 0.5, 0.125),),
        unmet=tuple((name, 0.75) for name in edits),
        keys=KeyMap((*edits, EVIL), tuple(edits), cosines),
        contradictions=(f"{EVIL} is edited and to be kept",),
    )


def found(names: int = 3) -> measure.TextSpace:
    reached = [
        Reach(EVIL if i == 0 else f"edit {i}", EVIL, 1.0, 2.0, 0.1 * i, 0.5, None, 0.25, 0.0)
        for i in range(names)
    ]
    return measure.TextSpace(
        reached=tuple(reached),
        neighbours={EVIL: measure.Neighbour(EVIL, 0.375, 0.0625)},
        kept=(measure.Kept(EVIL, 0.4375, 0.1, 0.2, "edit 1", 0.3),),
        apart=None,
        naming=None,
        worst=((EVIL, 0.5),),
        layers=(measure.Layer(7, "primal", 1e5, 2.0, 0.5, 3.0, 0.0125),),
        distance=(3.25, 0.75),
        prediction=prediction(names),
    )


def test_names_that_look_like_code_are_text() -> None:
    before = Page(conflicts_html(prediction()))
    after = Page(text_report_html(EVIL, found(), {"stage_two": 1.25}, {"names": EVIL}))
    # Contradiction, collision, unedited name, residual. In the report: contradiction, collision,
    # heading, one source, three destinations, neighbour, unedited name, caption.
    assert (before.text.count(EVIL), after.text.count(EVIL)) == (4, 10)
    for page in (before, after):
        assert "script" not in page.tags
        assert "49" not in page.text.replace("0.4375", "")
    for shown in ("10.0 %", "worst 20.0 %", "0.438", "0.375", "1.25 %", "3.25 before, 0.75 after"):
        assert shown in after.text, shown
    for shown in ("0.975", "0.250", "0.125", "0.750"):
        assert shown in before.text, shown


@pytest.mark.parametrize(("names", "tables"), [(SHOWN, 1), (SHOWN + 1, 2)])
def test_long_tables_are_folded(names: int, tables: int) -> None:
    page = Page(conflicts_html(prediction(names)))
    assert page.text.count("share of its offset") == tables
    # Two tables with a head and a row each, and the long one: its first rows, then all.
    assert page.tags.count("tr") == 4 + tables + SHOWN + (names if tables == 2 else 0)
    assert (f"All {names}" in page.text) == (tables == 2)
