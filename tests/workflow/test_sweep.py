"""Cells shared out to processes: each once, all at the first one, whoever is killed."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.config import RunConfig
from emcid_jax.runtime import mail as mail_module
from emcid_jax.runtime.parallel import Process, is_first, make_mesh
from emcid_jax.workflow import sweep
from emcid_jax.workflow.sweep import Cell, measured, share_out
from emcid_jax.workflow.table import Table
from emcid_jax.workflow.workdir import Log, Run
from tests.helpers.coordinator import mails

COSTS = {"a": 5, "b": 1, "c": 1, "d": 4, "e": 2, "f": 3}


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 9))
def test_shares_are_of_everything_once_and_even(costs: list[int], count: int) -> None:
    shares = share_out(costs, count)
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[place] for place in share) for share in shares]
    assert len(loads) == count
    # Whoever is busiest had the least to do when the last thing came.
    assert max(loads) <= sum(costs) / count + max(costs, default=0)
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_shares_are_those_of_a_computation_by_hand() -> None:
    assert share_out([1, 5, 1, 4, 2, 3], 2) == [[0, 1, 4], [2, 3, 5]]


class Host:
    """A process of a run: a folder, and a record of what it did."""

    def __init__(self, folder: Path, process: Process) -> None:
        self.folder, self.process = folder, process
        self.measured: list[str] = []
        self.found: list[str] = []
        self.shown: list[list[str]] = []
        self.alone: list[bool] = []

    def sweep(self, names: str, killed: Mapping[str, threading.Barrier]) -> bool:
        """Whether the table is complete here. KeyboardInterrupt at a cell in `killed`."""

        def measure(name: str, run: Run) -> dict[str, Any]:
            if name in killed:
                killed[name].wait(timeout=60)
                raise KeyboardInterrupt
            self.measured.append(name)
            self.alone.append(is_first())
            for file in ("pictures", "scratch"):
                path = run.workdir / file / f"{name}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(name)
            return {"figure": [COSTS[name], 0.1]}

        def find(name: str, run: Run) -> None:
            self.found.append(name)

        cells = [
            Cell(
                {"name": name},
                {"steps": 5},
                functools.partial(measure, name),
                cost=COSTS[name],
                needs=name in "abc",
                find=functools.partial(find, name),
            )
            for name in names
        ]
        run = Run(RunConfig(progress=False), self.folder, Log(self.folder / "log"), make_mesh())
        return measured(
            cells,
            Table(self.folder / "t.json"),
            run,
            "Cells",
            lambda rows: self.shown.append([row["name"] for row in rows]),
            ["pictures/*"],
            self.process,
        )


def together(first: Path, second: Path, names: str, killed: str = "") -> tuple[Host, Host]:
    """Two processes that work until they are done, or until each has come to a cell in `killed`."""
    shutil.rmtree(second, ignore_errors=True)
    shutil.copytree(first, second)  # As `mirrored` does it.
    deaths = dict.fromkeys(killed, threading.Barrier(2))
    with mails(2) as letters, ThreadPoolExecutor(2) as pool:
        hosts = [
            Host(folder, Process(number, 2, mail))
            for number, (folder, mail) in enumerate(zip((first, second), letters, strict=True))
        ]
        done = [pool.submit(host.sweep, names, deaths) for host in hosts]
        if killed:
            assert {type(one.exception(timeout=60)) for one in done} == {KeyboardInterrupt}
        else:
            assert [one.result(timeout=60) for one in done] == [True, False]
    return hosts[0], hosts[1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mail_module, sweep):
        monkeypatch.setattr(module, "PAUSE", 0.02)


def rows_in(folder: Path) -> Any:
    content = json.loads((folder / "t.json").read_text())
    return content["rows"], content["earlier"]


def test_two_processes_make_the_table_of_one(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.mkdir(), two.mkdir()
    alone = Host(one, Process(0, 1, None))
    assert alone.sweep("abcdefa", {})
    first, second = together(two, other, "abcdefa")
    assert rows_in(two) == rows_in(one)
    assert (alone.measured, first.measured, second.measured) == (
        list("abcdef"), list("abe"), list("cdf")
    )  # fmt: skip
    assert first.alone + second.alone == [True] * 6
    # The costliest cell finds what those with the same needs have in common, on every process.
    assert (alone.found, first.found, second.found) == ([], ["a", "d"], ["a", "d"])
    assert first.shown[-1] == alone.shown[-1] == list("abcdef")
    assert {path.stem for path in (two / "pictures").iterdir()} == set("abcdef")
    assert {path.stem for path in (two / "scratch").iterdir()} == set("abe")


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.mkdir(), two.mkdir()
    alone = Host(one, Process(0, 1, None))
    assert alone.sweep("abcdef", {})
    first, second = together(two, other, "abcdef", killed="ed")
    assert (first.measured, second.measured) == (["a", "b"], ["c"])
    rows, earlier = rows_in(two)
    assert rows == []
    assert {row["name"] for row in earlier} == set("abc")
    first, second = together(two, other, "abcdef")
    assert sorted(first.measured + second.measured) == ["d", "e", "f"]
    assert first.found == ["d"]  # Of the missing ones.
    assert rows_in(two) == rows_in(one)
    # On one host again, nothing is left to do.
    last = Host(two, Process(0, 1, None))
    assert last.sweep("abcdef", {})
    assert last.measured == []
    assert rows_in(two) == rows_in(one)
