"""The table of a sweep: every row once per content of what decides it, whatever kills the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import table as tables
from emcid_jax.workflow.table import Table


def fill(path: Path, names: str, decides: Any, dies_at: str = "") -> tuple[list[str], list[str]]:
    """The names that were measured, and all figures in the file's order."""
    measured: list[str] = []

    def measure(name: str) -> dict[str, Any]:
        if name == dies_at:
            raise KeyboardInterrupt
        measured.append(name)
        return {"figure": f"{name} of {decides}"}

    table = Table(path)
    try:
        for name in names:
            table.row({"name": name}, decides, lambda name=name: measure(name))
    except KeyboardInterrupt:
        pass
    return measured, [row["figure"] for row in json.loads(path.read_text())["rows"]]


def test_a_row_is_found_again_only_if_all_that_decides_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    figures = [f"{name} of {{'steps': 5}}" for name in "abc"]
    assert fill(path, "abc", {"steps": 5}, dies_at="c") == (["a", "b"], figures[:2])
    assert fill(path, "abc", {"steps": 5})[0] == ["c"]
    assert fill(path, "abc", {"steps": 5}) == ([], figures)
    # Another setting: what was measured before is neither shown nor found.
    assert fill(path, "a", {"steps": 6}) == (["a"], ["a of {'steps': 6}"])
    # The others lie where they were, for settings that ask for them.
    assert fill(path, "abc", {"steps": 5})[0] == ["a"]


def test_a_killed_run_keeps_rows_that_it_had_not_reached(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    fill(path, "abc", 1)
    fill(path, "zabc", 1, dies_at="z")
    assert fill(path, "abcz", 1)[0] == ["z"]


def test_rows_of_version_0_1_are_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    old = {"name": "a", "settings": "0" * 64, "figure": "old"}
    path.write_text(json.dumps({"settings": "0" * 64, "rows": [old, old | {"name": "b"}]}))
    assert fill(path, "a", 1) == (["a"], ["a of 1"])
    assert json.loads(path.read_text())["earlier"] == [old | {"name": "b"}]


def test_another_format_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    fill(path, "a", 1)
    monkeypatch.setattr(tables, "FORMAT", tables.FORMAT + 1)
    assert fill(path, "a", 1)[0] == ["a"]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    fill(path, "ab", 1)
    path.write_bytes(path.read_bytes().replace(b"a of 1", b"c of 1"))
    with pytest.raises(UserError, match=r"its checksum does not fit.*move it away"):
        Table(path)


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 1}', '{"rows": [1]}', "{}"])
def test_what_is_no_table_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"no table of this task|missing or damaged"):
        Table(path)
    assert path.read_text() == content


def test_a_row_that_an_older_version_measured_is_found_under_todays_names(tmp_path: Path) -> None:
    path, old = tmp_path / "t.json", "stage_two.moment_weight=2."
    decides = [{"stage_two": {"moment_weight": 2.0, "layers": [1]}}, {"path": "abc"}]
    Table(path).row({"variant": old}, decides, lambda: {"figure": 1})
    table = Table(path)
    new = {"variant": "stage_two.preservation_weight=2."}
    decides = [{"stage_two": {"preservation_weight": 2.0, "layers": (1,)}}, {"path": "abc"}]
    assert table.row(new, decides, lambda: {"figure": 2})["figure"] == 1
    stored = json.loads(path.read_text())
    assert [row["variant"] for row in stored["rows"]] == [new["variant"]]
    assert stored["earlier"] == []
    # From now on under its new hash; another value is another row.
    assert Table(path).row(new, decides, lambda: {"figure": 2})["figure"] == 1
    decides[0]["stage_two"]["preservation_weight"] = 3.0
    assert Table(path).row(new, decides, lambda: {"figure": 3})["figure"] == 3
