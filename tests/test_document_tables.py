"""Tables of docs/ that name a CSV of docs/data print what it holds, and stay small.

A comment above such a table names the file and the coordinates that all its cells have in common:

    <!-- data/long_run.csv | rounds = 10 | metric = edit success | columns = written -->

Other coordinates stand in the table. A header is the name of a column of the CSV (its cells are
coordinates), a metric, or, with `columns`, a value of the column named there. `low` and `high`
are the ends of the interval of the metric before them. A cell without a digit says that the CSV
has no such figure.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from emcid_jax.reporting.tables import COLUMNS

DOCS = Path(__file__).parents[1] / "docs"
TABLE = re.compile(r"<!-- data/(\w+)\.csv(.*?)-->\n\n((?:\|.*\n)+)")
ENDS = ("value", "low", "high")
NAMED = sorted(page.name for page in DOCS.glob("*.md") if "<!-- data/" in page.read_text("utf8"))
Place = frozenset[tuple[str, str]]
"""Where a figure stands: names of columns with their values; an empty value is left out."""


def plain(cell: str) -> str:
    """A cell without emphasis and without commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", cell.replace("`", "").strip(" *"))


def place(coordinates: Mapping[str, str]) -> Place:
    return frozenset((name, plain(value)) for name, value in coordinates.items() if value.strip())


def figures(name: str) -> tuple[set[str], dict[Place, Mapping[str, str]]]:
    """The columns of a CSV that are coordinates, and its figures by their place."""
    with (DOCS / "data" / f"{name}.csv").open(encoding="utf8", newline="") as file:
        rows = csv.DictReader(file)
        keys = set(rows.fieldnames or ()) - set(ENDS)
        listed = [(place({key: row[key] for key in keys}), row) for row in rows]
    assert len(dict(listed)) == len(listed), f"{name}: two figures in one place"
    return keys, dict(listed)


def cells(keys: set[str], options: str, table: str) -> Iterator[tuple[Place, str, str]]:
    """Of every cell that is a figure: its place, value or end of the interval, and its text."""
    shared = dict(re.split(" = ", part.strip(), maxsplit=1) for part in options.split("|")[1:])
    across = shared.pop("columns", "metric")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    words = {name: key for key, name in COLUMNS.items()} if "method" in keys else {}
    for line in lines[2:]:
        mine = shared | {
            head: cell for head, cell in zip(lines[0], line, strict=True) if head in keys
        }
        for head, cell in zip(lines[0], line, strict=True):
            if head not in keys:
                end = head if head in ENDS else "value"
                if end == "value":
                    mine[across] = head.removeprefix(f"{across} = ")
                metric = words.get(mine["metric"], mine["metric"])
                yield place(mine | {"metric": metric}), end, plain(cell)


def agree(text: str, held: str) -> bool:
    """Whether a page's number is the CSV's, rounded to the digits that the page has."""
    digit = Decimal(1).scaleb(int(Decimal(text).as_tuple().exponent))
    return abs(Decimal(text) - Decimal(held)) <= digit / 2


@pytest.mark.parametrize("page", NAMED)
def test_tables_print_their_csv(page: str) -> None:
    text = (DOCS / page).read_text("utf8")
    tables = TABLE.findall(text)
    assert len(tables) == text.count("<!-- data/"), "a comment must stand right above its table"
    wrong = []
    for name, options, table in tables:
        assert f"](data/{name}.csv)" in text, f"{name}: the page has no link to it"
        keys, held = figures(name)
        for where, end, cell in cells(keys, options, table):
            found = held.get(where, {}).get(end, "")
            if bool(re.search(r"\d", cell)) != bool(found) or (found and not agree(cell, found)):
                wrong.append((name, sorted(where), end, cell, found))
    assert not wrong


@pytest.mark.parametrize("page", NAMED)
def test_tables_are_small_and_have_one_number_a_cell(page: str) -> None:
    for _, _, table in TABLE.findall((DOCS / page).read_text("utf8")):
        lines = [line.strip("|").split("|") for line in table.splitlines()]
        assert len(lines[0]) <= 6, lines[0]
        assert not [cell for line in lines for cell in line if re.search(r"\d (to|/|\() ?\d", cell)]


def test_every_csv_belongs_to_a_page() -> None:
    pages = "".join(page.read_text("utf8") for page in DOCS.glob("*.md"))
    assert [file.name for file in DOCS.glob("data/*") if f"](data/{file.name})" not in pages] == []
