"""The main job on a tiny random model: what it leaves, what may change, mistakes cost one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file, save_file

from emcid_jax import main
from emcid_jax.config import EditConfig, from_config_dict
from emcid_jax.editing.export.edit_file import WEIGHT, read_edit
from emcid_jax.explore.session import open_session, solved
from main_job import REQUESTS, metrics, written


def test_a_run_leaves_what_it_should(
    finished_edit: Path, edit_config: EditConfig, judged_model: Path
) -> None:
    names = {path.name for path in finished_edit.iterdir() if not path.name.startswith(".")}
    assert names == {
        "bank",
        "config.json",
        "edit.safetensors",
        "evaluation",
        "images",
        "metrics.json",
        "metrics.jsonl",
        "moments",
        "report.html",
        "text_encoder",
    }
    saved = json.loads((finished_edit / "config.json").read_text())
    assert from_config_dict(saved["config"], EditConfig) == edit_config
    assert {"jax", "git", "device", "emcid_jax"} <= set(saved["environment"])
    assert len(list((finished_edit / "bank").glob("*.safetensors"))) == len(REQUESTS)
    figures = metrics(finished_edit)
    assert figures["requests"] == len(REQUESTS)
    assert {"efficacy_source2dest", "holdout_delta"} <= set(figures["aice"])
    phases = {"stage_one", "moments", "stage_two", "export", "evaluation", "other_forms", "report"}
    assert phases <= set(figures["seconds"])
    assert len(figures["skipped"]) == 1  # The judge knows no nurse.
    forms = {one["form"]: one["names"] for one in figures["other_forms"]}
    assert forms["the name itself"] == forms["possessive"] == len(REQUESTS)
    assert forms["written together"] == sum(" " in one["source"] for one in REQUESTS)
    # The drop-in folder is the base plus the weight edit.
    content, ledger = read_edit(finished_edit / "edit.safetensors")
    deltas = content.deltas()
    base = load_file(judged_model / "text_encoder" / "model.safetensors")
    base = {f"text_model.{name.removeprefix('text_model.')}": base[name] for name in base}
    edited = load_file(finished_edit / "text_encoder" / "model.safetensors")
    assert tuple(deltas) == (1, 2)
    for layer, delta in deltas.items():
        name = WEIGHT.format(layer)
        assert np.abs(delta).max() > 0
        np.testing.assert_allclose(edited[name], base[name] + delta, atol=1e-6)
    sources = {request["source"] for request in ledger["requests"]}
    assert sources == {request["source"] for request in REQUESTS}
    page = (finished_edit / "report.html").read_text()
    assert "great white shark" in page
    assert "Other forms of the names" in page
    assert f"The {len(REQUESTS)} of {len(REQUESTS)} with the largest share" in page


def test_evaluation_settings_may_change_and_leave_the_edit_alone(
    finished_edit: Path,
    edit_config: EditConfig,
    edit_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(finished_edit, workdir)
    before = (workdir / "edit.safetensors").stat().st_mtime_ns
    other = dataclasses.replace(edit_config.evaluation, prompts_per_request=1)
    done = edit_command(workdir, config=dataclasses.replace(edit_config, evaluation=other))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"open {workdir / 'report.html'}\n"
    assert (workdir / "edit.safetensors").stat().st_mtime_ns == before
    assert metrics(workdir)["images"] < metrics(finished_edit)["images"]
    assert metrics(workdir)["stage_two"] == metrics(finished_edit)["stage_two"]


@pytest.fixture
def fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[EditConfig, Path], list[str]]:
    """Runs the command in this process; it must end with exit code 2. Gives the lines it says."""

    def run(config: EditConfig, workdir: Path) -> list[str]:
        quiet = dataclasses.replace(config.run, compile_cache=False)
        file = written(dataclasses.replace(config, run=quiet), tmp_path / "settings.py")
        flags.FLAGS.unparse_flags()
        rest = main._parse_flags(["main", f"--config={file}", f"--workdir={workdir}"])
        assert main.main(rest) == 2
        said = capsys.readouterr()
        assert said.out == ""
        lines = said.err.strip().splitlines()
        assert lines[0].startswith("error: ")
        return lines

    return run


def changed(config: EditConfig, section: str, **fields: Any) -> EditConfig:
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **fields)}
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


@pytest.mark.parametrize(
    ("section", "fields", "named"),
    [
        ("stage_one", {"steps": 4}, "config.stage_one.steps is 4"),
        ("moments", {"count": 5}, "config.moments.count is 5"),
        ("stage_two", {"residual": "released"}, "config.stage_two.residual is 'released'"),
        ("requests", {"count": 2}, "config.requests.count is 2"),
        ("model", {"export_dtype": "float16"}, "config.model.export_dtype is 'float16'"),
    ],
)
def test_a_changed_setting_is_refused_by_name(
    finished_edit: Path,
    edit_config: EditConfig,
    fails: Callable[[EditConfig, Path], list[str]],
    section: str,
    fields: dict[str, Any],
    named: str,
) -> None:
    before = snapshot(finished_edit)
    (line,) = fails(changed(edit_config, section, **fields), finished_edit)
    assert line.startswith(f"error: {named}")
    after = snapshot(finished_edit)
    after.pop(str(finished_edit / ".lock"))
    assert after.items() <= before.items()


def test_changed_requests_are_refused(
    finished_edit: Path,
    edit_config: EditConfig,
    fails: Callable[[EditConfig, Path], list[str]],
    tmp_path: Path,
) -> None:
    other = tmp_path / "requests.json"
    other.write_text(json.dumps({"requests": [REQUESTS[0] | {"dest": "tench"}, *REQUESTS[1:]]}))
    (line,) = fails(changed(edit_config, "requests", path=str(other)), finished_edit)
    assert line.startswith("error: config.requests.path: the content")


def test_every_mistake_is_a_line_and_leaves_nothing(
    edit_config: EditConfig,
    judged_model: Path,
    fails: Callable[[EditConfig, Path], list[str]],
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "workdir"
    manifest = tmp_path / "bad.json"
    manifest.write_text('{"requests": [\n{"source": "dog"},\n{"source": "cat", "dset": "x"}]}')
    nan = tmp_path / "nan"
    shutil.copytree(judged_model, nan)
    weights = load_file(nan / "text_encoder" / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.fc2.weight"))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, nan / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    block = changed(edit_config, "stage_one", layer=7)
    cases = [
        (changed(edit_config, "requests", path=str(tmp_path / "no.json")), ["no.json"]),
        (changed(edit_config, "model", path=str(tmp_path / "no")), ["config.model.path", "no"]),
        (changed(block, "stage_two", layers=(1, 7)), ["config.stage_one.layer", "0 to 3"]),
        (changed(edit_config, "model", path=str(nan)), [name, "NaN"]),
        (changed(edit_config, "moments", captions=str(tmp_path / "no.txt")), ["moments.captions"]),
        (
            changed(edit_config, "evaluation", judge=str(tmp_path / "no")),
            ["config.evaluation.judge"],
        ),
        (changed(edit_config, "evaluation", holdout_path="no.json"), ["no.json"]),
    ]
    for case, words in cases:
        (line,) = fails(case, workdir)
        assert all(word in line for word in words), line
        assert not workdir.exists()
    lines = fails(changed(edit_config, "requests", path=str(manifest)), workdir)
    assert any("bad.json:2" in line and "dest" in line for line in lines)
    assert any("bad.json:3" in line and "dset" in line for line in lines)
    assert not workdir.exists()


def test_an_unwritable_workdir_is_one_line(
    edit_config: EditConfig, fails: Callable[[EditConfig, Path], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (line,) = fails(edit_config, tmp_path / "file" / "workdir")
    assert "--workdir" in line
    assert "is a file" in line
    assert (tmp_path / "file").read_text() == "x"


def test_a_finished_run_is_explored_as_it_was_written(finished_edit: Path) -> None:
    session = open_session(finished_edit)
    found = solved(session, [concept.strength for concept in session.concepts.concepts])
    content, ledger = read_edit(finished_edit / "edit.safetensors")
    assert len(session.concepts.concepts) == len(ledger["requests"]) == len(REQUESTS)
    for layer, delta in content.deltas().items():
        wanted = found.edit["text_encoder"].deltas[layer]
        # The page solves by another program than the run did, which rounds in another way.
        np.testing.assert_allclose(delta, wanted, atol=1e-5 * np.abs(wanted).max())
