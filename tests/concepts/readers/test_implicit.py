"""TIMED's and RoAD's tables: random ones come back as they were, bad ones are told in full."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.readers.implicit import read_implicit
from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.bundled import IMPLICIT

words = st.text("aB ,\"'é\n", min_size=1, max_size=8).map(lambda text: f"x{text}y")


def write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue(), "utf-8", newline="")
    return path


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["timed", "road"]), tests=st.integers(1, 6))
def test_random_tables_come_back(
    tmp_path: Path, data: st.DataObject, kind: str, tests: int
) -> None:
    numbers = range(1, tests + 1)
    if kind == "timed":
        columns = ["old", "new"]
        columns += [f"{name}{i}" for i in numbers for name in ("positive", "gt", "negative", "gn")]
    else:
        columns = ["Type", "Prompt", "Oracle", "Old", "New"]
        names = ("Positive", "Positive_old", "Positive_new", "Negative", "Negative_new")
        columns += [f"{name}{i}" for i in numbers for name in names]
    columns = data.draw(st.permutations(columns))
    row = st.fixed_dictionaries(dict.fromkeys(columns, words))
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    found = read_implicit(write(tmp_path / "table.csv", columns, rows))
    assert len(found) == len(rows)
    for edit, row in zip(found, rows, strict=True):
        low = {name: value.lower() for name, value in row.items()}
        if kind == "timed":
            assert (edit.source, edit.dest) == (low["old"], low["new"])
            assert edit.own == (low["old"], low["old"], low["new"])
            related = [(low[f"positive{i}"], low[f"positive{i}"], low[f"gt{i}"]) for i in numbers]
            unrelated = [(low[f"negative{i}"], low[f"negative{i}"], low[f"gn{i}"]) for i in numbers]
        else:
            assert (edit.source, edit.dest) == (low["Prompt"], low["New"])
            assert edit.own == (low["Prompt"], low["Old"], low["New"])
            related = [
                (low[f"Positive{i}"], low[f"Positive_old{i}"], low[f"Positive_new{i}"])
                for i in numbers
            ]
            unrelated = [
                (low[f"Negative{i}"], low[f"Negative{i}"], low[f"Negative_new{i}"]) for i in numbers
            ]
        assert (list(edit.related), list(edit.unrelated)) == (related, unrelated)


def test_published_tables(benchmark_files: Path) -> None:
    """Rows of five related and five unrelated prompts, as both tables have them."""
    for name in ("timed/TIMED_validation_set.csv", "road/RoAD_validation.csv"):
        path = benchmark_files / name
        edits = read_implicit(path)
        assert len(edits) > 1
        assert {(len(edit.related), len(edit.unrelated)) for edit in edits} == {(5, 5)}
        for edit, request in zip(edits, read_requests(path), strict=True):
            assert (edit.source, edit.dest) == (
                request.source.strip().lower(),
                str(request.dest).strip().lower(),
            )


def test_the_sprite_worlds_own_table() -> None:
    edits = read_implicit(IMPLICIT)
    assert len(edits) == 10
    assert {(len(edit.related), len(edit.unrelated)) for edit in edits} == {(5, 5)}
    for edit in edits:
        assert all(edit.source.removeprefix("a ") in choice.prompt for choice in edit.related)
        assert not any(edit.source.removeprefix("a ") in one.prompt for one in edit.unrelated)


def test_what_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    columns = ["old", "new", "positive1", "gt1", "negative1", "gn1"]
    full = dict.fromkeys(columns, "x")
    path = write(tmp_path / "t.csv", columns, [full, full | {"gt1": " "}, full | {"new": ""}])
    with pytest.raises(UserError, match=r"(?s)t\.csv:3: gt1: is empty.*t\.csv:4: new: is empty"):
        read_implicit(path)
    with pytest.raises(UserError, match=r"columns: are of no known table .* give a TIMED table"):
        read_implicit(write(tmp_path / "t.csv", columns[:-1], []))
    with pytest.raises(UserError, match="holds no row"):
        read_implicit(write(tmp_path / "t.csv", columns, []))
    (tmp_path / "t.json").write_text('[{"old": "a"}]')
    with pytest.raises(UserError, match=r"file: is no table \('t\.json'\)"):
        read_implicit(tmp_path / "t.json")
