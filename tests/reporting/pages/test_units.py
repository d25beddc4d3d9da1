"""What a report shows of gates: a report made by hand, with names that are not kind."""

from __future__ import annotations

import dataclasses
import re

import pytest

from emcid_jax.editing.stage_two.gate_report import (
    GateReport,
    Mistaken,
    RoomReport,
    UnitsReport,
)
from emcid_jax.reporting.pages.edit import ReportData, report_html
from emcid_jax.reporting.pages.render import percent
from emcid_jax.reporting.pages.units import MOST, WrittenUnits, shown

EVIL = '<script>alert("x")</script>{{7*7}} $\\frac{a$'
SURE = GateReport("violin", 0.65, 1.0, 0.95, 0.0, spoken=0.0003)
WEAK = GateReport(
    EVIL,
    0.91,
    0.625,
    0.4,
    1e-5,
    (
        Mistaken("far", "near", 0.55, 0.31, 0.0),
        Mistaken("blue light", "nested", 0.83, 0.7, 0.5),
        Mistaken(EVIL * 2, "kept", 0.9, 0.8, 0.75),
        Mistaken("lamp", "same destination", 0.99, 0.98, 1.0),
    ),
    spoken=0.002,
)
SHARES = GateReport(
    "lamp",
    0.7,
    1.0,
    0.9,
    0.0,
    (Mistaken("violin", "near", 0.9, 0.9, 1.0),),
    EVIL,
    spoken=0.001,
    inside=("lamp post", EVIL),
)
REPORT = UnitsReport((SURE, WEAK, SHARES), 0.00025, 40_000, (0.5, 1.0, 0.25))


def page(report: UnitsReport, name: str = "text_encoder") -> str:
    return report_html(ReportData("m", 3, units={name: WrittenUnits(1, report)}))


def rows(html: str, title: str) -> list[str]:
    """The lines of the table under a title, as text."""
    table = html.split(f"<h3>{title}</h3>")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [
        re.sub(r"(<[^>]*>\s*)+", "|", row).strip("|") for row in table.split("<tr>") if row.strip()
    ]


def test_the_page_tells_every_figure_and_escapes_every_name() -> None:
    html = page(REPORT)
    said = html.replace("&#39;", "'").replace("&#34;", '"')
    assert "This run was not evaluated." in html
    assert EVIL not in html
    safe = EVIL.replace("<", "&lt;").replace(">", "&gt;")
    assert rows(said, "Names that a gate is confused by") == [
        f"{safe}|{safe * 2}|a destination, or kept|0.90|0.80|75 %",
        f"{safe}|blue light|one name ends with the other|0.83|0.70|50 %",
        f"{safe}|far|edited, too|0.55|0.31|0 %",
    ]
    assert rows(said, "Weakest gates") == [
        f"{safe}|62 %|0.40|0.91|0.001 %",
        "violin|100 %|0.95|0.65|0 %",
    ]
    assert rows(said, "Everyday words") == [f"{safe}|0.2 %", "lamp|0.1 %", "violin|0.03 %"]
    assert rows(said, "Names that share a unit") == [f"lamp|{safe}"]
    assert rows(said, "Names inside others") == ["lamp|lamp post", f"lamp|{safe}"]
    for part in (
        "81 %",
        "lowest: 62 %",
        "0.025 %",
        "of 40,000 tokens",
        "4 hidden units",
        "block 1",
    ):
        assert part in html, part
    assert '<b class="bad">2</b> pairs could not be told apart' in html
    assert html.count("<img") == 1


def test_a_shared_unit_is_confused_by_nothing_that_it_answers_for() -> None:
    found = shown(WrittenUnits(0, REPORT))
    assert [gate.source for gate in found.weakest] == [EVIL, "violin"]
    assert {pair.gate.source for pair in found.confused} == {EVIL}
    assert "lamp" not in [pair.other.name for pair in found.confused]
    assert found.ambiguous == 2


def test_long_tables_are_folded_and_end() -> None:
    gates = tuple(
        GateReport(
            f"name {i}",
            0.65,
            1 - i / 1000,
            0.9,
            0.0,
            tuple(Mistaken(f"other {k}", "near", 0.6, 0.5, 0.0) for k in range(25)),
        )
        for i in range(60)
    )
    html = page(UnitsReport(gates, 0.0, 10))
    assert f"{60 * 25 - MOST} further pairs are in metrics.json" in html
    assert len(rows(html, "Names that a gate is confused by")) == 30
    weakest = rows(html, "Weakest gates")
    assert [row.split("|")[0] for row in weakest] == [f"name {i}" for i in range(59, 49, -1)]
    assert "<summary>All 60</summary>" in html
    assert f"<summary>All {MOST}</summary>" in html


def test_of_an_older_edit_what_was_not_measured_is_left_out() -> None:
    own = [gate for gate in REPORT.gates if not gate.shares]
    old = tuple(dataclasses.replace(gate, spoken=0.0, inside=()) for gate in own)
    html = page(dataclasses.replace(REPORT, gates=old, separability=()))
    titles = "Names inside others", "Everyday words", "Which block", "Names that share a unit"
    assert not [title for title in (*titles, "<img") if title in html]


def test_room_for_the_units_has_its_price() -> None:
    title = "Lost by making room"
    assert title not in page(REPORT)
    room = RoomReport(gone=1_200, inner=1_536, lost=0.0375)
    said = page(dataclasses.replace(REPORT, room=room)).split(title)[1]
    assert "3.8 %" in said
    assert "1,200 of the block's 1,536 hidden units" in said.replace("&#39;", "'")


def test_every_text_encoder_has_its_section() -> None:
    assert "<h2>Concept units</h2>" in page(REPORT)
    assert "<h2>Concept units in text_encoder_2</h2>" in page(REPORT, "text_encoder_2")
    other = WrittenUnits(2, dataclasses.replace(REPORT, tokens=7))
    units = {"text_encoder": WrittenUnits(0, REPORT), "text_encoder_2": other}
    first, second = report_html(ReportData("m", 3, units=units)).split("in text_encoder_2</h2>")
    assert "Concept units in text_encoder</h2>" in first
    assert "block 0" in first
    assert "block 2" in second
    assert "of 7 tokens" in second


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.98765, "99 %"), (1.234e-7, "0.000012 %"), (0.004, "0.4 %")],
)
def test_shares_in_per_cent(share: float, text: str) -> None:
    assert percent(share) == text
