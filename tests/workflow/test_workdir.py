"""The workdir: held by one run, refused when it was made from something else."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emcid_jax.config import EditConfig, EvaluationConfig, RequestsConfig, RunConfig, StageOneConfig
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import replacing
from emcid_jax.workflow import workdir as folders

CONFIG = EditConfig(requests=RequestsConfig(path="a.json"))
NAMES = ("metrics.jsonl", "bank", "images")
INPUTS = {"requests.path": "1", "model.path": "2"}


def require_same(workdir: Path, inputs: dict[str, str] | None = None, **sections: Any) -> None:
    config = dataclasses.replace(CONFIG, **sections)
    folders.require_same(workdir, dataclasses.asdict(config), inputs or INPUTS)


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    require_same(tmp_path)
    folders.write_config(tmp_path, CONFIG, INPUTS, {"jax": "1"})
    require_same(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["config"]["stage_one"]["steps"] == 100
    assert content["environment"] == {"jax": "1"}


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"stage_one": StageOneConfig(steps=7)}, "config.stage_one.steps is 7"),
        ({"requests": RequestsConfig(path="a.json", count=3)}, "config.requests.count is 3"),
        (
            {"stage_two": dataclasses.replace(CONFIG.stage_two, layers=(9, 10))},
            "config.stage_two.layers is (9, 10)",
        ),
    ],
)
def test_a_changed_setting_is_refused_by_name(
    tmp_path: Path, sections: dict[str, Any], field: str
) -> None:
    folders.write_config(tmp_path, CONFIG, INPUTS, {})
    with pytest.raises(UserError) as caught:
        require_same(tmp_path, **sections)
    assert str(caught.value).startswith(field)
    assert "new --workdir" in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"evaluation": EvaluationConfig(steps=3)},
        {"run": RunConfig(save_every=1)},
        {"stage_one": StageOneConfig(concept_batch=2)},
        {"requests": RequestsConfig(path="moved/a.json")},
    ],
)
def test_what_makes_no_result_wrong_may_change(tmp_path: Path, sections: dict[str, Any]) -> None:
    folders.write_config(tmp_path, CONFIG, INPUTS, {})
    require_same(tmp_path, **sections)


def test_a_workdir_with_old_names_is_compared_under_todays(tmp_path: Path) -> None:
    folders.write_config(tmp_path, CONFIG, INPUTS, {})
    path = tmp_path / "config.json"
    text = path.read_text()
    for old, new in (("moment_weight", "preservation_weight"), ("solve", "solve_on")):
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    path.write_text(text)
    require_same(tmp_path)
    other = dataclasses.replace(CONFIG.stage_two, preservation_weight=3.0)
    with pytest.raises(UserError, match=r"^config\.stage_two\.preservation_weight is 3\.0, but"):
        require_same(tmp_path, stage_two=other)


def test_changed_content_is_refused_by_the_field_that_names_it(tmp_path: Path) -> None:
    folders.write_config(tmp_path, CONFIG, INPUTS, {})
    with pytest.raises(UserError, match=r"^config\.model\.path: the content"):
        require_same(tmp_path, inputs=INPUTS | {"model.path": "3"})


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable"):
        require_same(tmp_path)


def hold(workdir: Path, held: Any, release: Any) -> None:
    with folders.exclusive(workdir, NAMES):
        held.set()
        release.wait(30)


def test_two_runs_cannot_share_a_workdir_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "w", held, release))
    process.start()
    assert held.wait(60)
    with (
        pytest.raises(UserError, match="another run is using"),
        folders.exclusive(tmp_path / "w", NAMES),
    ):
        pass
    process.kill()
    process.join()
    with folders.exclusive(tmp_path / "w", NAMES):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_from_another_run(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)
    wanted = "this file system has no locks .* give a folder on another disk"
    with pytest.raises(UserError, match=wanted), folders.exclusive(tmp_path, NAMES):
        pass


def test_a_link_or_pipe_as_lock_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"\.lock: is a link"), folders.exclusive(tmp_path, NAMES):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match=r"\.lock: is a pipe"), folders.exclusive(tmp_path, NAMES):
        pass


def test_what_lies_beside_the_results_is_left_alone(tmp_path: Path) -> None:
    """As with `--workdir=.`: drafts, and unfinished files of others and of living processes."""
    drafts = tmp_path / "thesis" / ".drafts.tmp"
    drafts.mkdir(parents=True)
    with replacing(tmp_path / "x") as living:
        gone = _left_behind(living.name)
        for folder in (tmp_path, drafts):
            (folder / "notes.txt").write_text("mine")
            (folder / gone).write_text("unfinished")
        folders.require_writable(tmp_path, NAMES, CONFIG)
        with folders.exclusive(tmp_path, NAMES):
            assert not (tmp_path / gone).exists()
            (tmp_path / "bank").mkdir()
            (tmp_path / "bank" / gone).write_text("unfinished")
        with folders.exclusive(tmp_path, NAMES):
            assert list((tmp_path / "bank").iterdir()) == []
        assert living.exists()
        assert {path.name for path in drafts.iterdir()} == {"notes.txt", gone}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _left_behind(name: str) -> str:
    """As `name`, but of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    parts = name.split(".")
    return ".".join([*parts[:3], str(ended.pid), *parts[4:]])


def test_an_unwritable_place_is_refused_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for workdir in (tmp_path / "file", tmp_path / "file" / "runs" / "1"):
        with pytest.raises(UserError, match="is a file"):
            folders.require_writable(workdir, NAMES, CONFIG)
        with pytest.raises(UserError, match="--workdir"), folders.exclusive(workdir, NAMES):
            pass
    folders.require_writable(tmp_path / "new" / "er", NAMES, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_seconds_add_up_over_runs_and_a_cut_line_costs_nothing_else(tmp_path: Path) -> None:
    log = folders.Log(tmp_path / "metrics.jsonl")
    assert log.seconds() == {}
    log.write("stage_one", 1.5, concepts=2)
    with log.path.open("a") as file:
        file.write('{"phase": "stage_one", "sec')
    log.write("stage_one", 2.0)
    log.write("moments", 0.25)
    assert log.seconds() == {"stage_one": 3.5, "moments": 0.25}
    assert json.loads(log.path.read_text().splitlines()[0])["concepts"] == 2


def test_a_timed_phase_is_logged_with_its_figures(tmp_path: Path) -> None:
    log = folders.Log(tmp_path / "metrics.jsonl")
    with log.timed("stage_two") as figures:
        figures["distance"] = [1.0, 0.5]
    (line,) = map(json.loads, log.path.read_text().splitlines())
    assert line["phase"] == "stage_two"
    assert line["distance"] == [1.0, 0.5]
    assert line["seconds"] >= 0


def test_a_run_goes_on_from_its_mirror_and_only_with_its_settings(tmp_path: Path) -> None:
    config = RunConfig(mirror=f"file://{tmp_path}/mirror")
    names = ("config.json", *NAMES)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))

    def check(folder: Path) -> None:
        folders.require_same(folder, dataclasses.asdict(CONFIG), INPUTS)

    def other(folder: Path) -> None:
        steps = dataclasses.replace(CONFIG, stage_one=StageOneConfig(steps=7))
        folders.require_same(folder, dataclasses.asdict(steps), INPUTS)

    with folders.running(config, first, names, check) as run:
        folders.write_config(first, CONFIG, INPUTS, {})
        run.log.write("stage_one", 1.0)
    message = r"^config\.run\.mirror is .* another run: config\.stage_one\.steps is 7, but it was"
    with pytest.raises(UserError, match=message), folders.running(config, second, names, other):
        pass
    assert not (second / "config.json").exists()
    with folders.running(config, second, names, check) as run:
        assert run.log.seconds() == {"stage_one": 1.0}
    # Of several processes the first one has it before the others get their copies.
    with folders.mirrored(third, config.mirror) as mine:
        assert (mine / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
        with folders.running(config, mine, names, check):
            pass
