"""The main job on a tiny random model: killed anywhere it ends alike, mistakes cost one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file, save_file

from emcid_jax import config as settings
from emcid_jax import main
from emcid_jax.config import EditConfig, from_config_dict
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import read_list
from emcid_jax.editing.export.edit_file import WEIGHT, read_edit
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.tasks import edit
from emcid_jax.workflow import edit_job
from emcid_jax.workflow.workdir import Log, Run

ROOT = Path(__file__).parents[2]
NAMES = ["dog", "cat, kitten", "goldfish", "tench", "snow", "beach", "great white shark"]
REQUESTS = [
    {"source": "dog", "dest": "cat", "seed": 1},
    {"source": "great white shark", "dest": "goldfish", "seed": 2},
    {"source": "snow", "dest": "beach", "templates": ["A photo of {}"], "weight": 2},
    {"source": "nurse", "dest": "engineer"},
    {"source": "tench", "dest": "goldfish", "seed": 5},
]
CAPTIONS = [f"number {i} a picture of {name}" for i in range(12) for name in ("a dog", "the snow")]

# Runs the command and sends its own process a signal at a chosen call of a chosen function.
KILLED = """
import importlib, os, sys

module, name = importlib.import_module(sys.argv[1]), sys.argv[2]
number, count = map(int, sys.argv[3:5])
original, calls = getattr(module, name), 0


def dying(*arguments, **options):
    global calls
    calls += 1
    if calls == count + 1:
        os.kill(os.getpid(), number)
    return original(*arguments, **options)


setattr(module, name, dying)
sys.argv[1:] = sys.argv[5:]
from emcid_jax.main import run

run()
"""
KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)
KILLS = [
    (
        "emcid_jax.editing.bank.memories",
        "write",
        KILL,
        3,
    ),  # Stage I, between the records of a chunk
    ("emcid_jax.editing.bank.memories", "write", TERM, 0),
    ("emcid_jax.storage.checkpoints", "save", KILL, 2),  # statistics
    ("emcid_jax.editing.moments.second_moment", "_add", TERM, 0),
    ("emcid_jax.editing.export.edit_file", "write_edit", KILL, 0),  # between the two exports
    ("emcid_jax.evaluation.drawing.cache", "write_atomically", KILL, 9),  # evaluation
]
# What SIGTERM lets the run finish: the second chunk of two; the third batch of captions.
SAVED = {"write": ("bank/*.safetensors", 4), "_add": ("moments/progress/3", 1)}


@pytest.fixture(scope="module")
def model(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny Stable Diffusion with a random judge in it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_pipeline_folder, folder)
    write_tiny_judge(folder / "judge", NAMES)
    return folder


@pytest.fixture(scope="module")
def config(model: Path) -> EditConfig:
    files = model.parent
    (files / "requests.json").write_text(json.dumps({"requests": REQUESTS}))
    (files / "captions.txt").write_text("\n".join(CAPTIONS))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(files / "requests.json")),
        model=settings.ModelConfig(path=str(model)),
        stage_one=settings.StageOneConfig(layer=2, steps=3, image_steps=1),
        moments=settings.MomentConfig(captions=str(files / "captions.txt"), batch=4),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(steps=1, guidance=2.0, batch=8, holdout=2),
        run=settings.RunConfig(save_every=2, save_every_batches=1, progress=False),
    )


def written(config: EditConfig, path: Path) -> Path:
    """A config file of these settings."""
    values = json.dumps(dataclasses.asdict(config))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({values!r}))\n"
    )
    return path


@pytest.fixture(scope="module")
def command(
    config: EditConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a process of its own, killed or not."""
    files = tmp_path_factory.mktemp("command")
    environment = os.environ | {"XDG_CACHE_HOME": str(files / "cache")}

    def run(
        workdir: Path, *killed: object, config: EditConfig = config
    ) -> subprocess.CompletedProcess[str]:
        file = written(config, files / "settings.py")
        start = ["-c", KILLED, *map(str, killed)] if killed else ["-m", "emcid_jax.main"]
        return subprocess.run(
            [sys.executable, *start, f"--config={file}", f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def finished(
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "workdir"
    done = command(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def metrics(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())


def require_same_arrays(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def require_same_results(found: Path, wanted: Path) -> None:
    """The same weights, images and figures, to the bit."""
    content, ledger = read_edit(found / "edit.safetensors")
    wanted_content, wanted_ledger = read_edit(wanted / "edit.safetensors")
    assert ledger == wanted_ledger
    require_same_arrays(content.arrays, wanted_content.arrays)
    for part in ("text_encoder", "images"):
        files = sorted(path.relative_to(wanted) for path in (wanted / part).rglob("*.*"))
        assert files == sorted(path.relative_to(found) for path in (found / part).rglob("*.*"))
        for file in files:
            assert (found / file).read_bytes() == (wanted / file).read_bytes(), file
    for name in ("aice", "scores", "images", "stage_two"):
        assert metrics(found)[name] == metrics(wanted)[name]


def test_a_run_leaves_what_it_should(finished: Path, config: EditConfig, model: Path) -> None:
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
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
    saved = json.loads((finished / "config.json").read_text())
    assert from_config_dict(saved["config"], EditConfig) == config
    assert {"jax", "git", "device", "emcid_jax"} <= set(saved["environment"])
    assert len(list((finished / "bank").glob("*.safetensors"))) == len(REQUESTS)
    figures = metrics(finished)
    assert figures["requests"] == len(REQUESTS)
    assert {"efficacy_source2dest", "holdout_delta"} <= set(figures["aice"])
    phases = {"stage_one", "moments", "stage_two", "export", "evaluation", "report"}
    assert phases <= set(figures["seconds"])
    assert len(figures["skipped"]) == 1  # The judge knows no nurse.
    # The drop-in folder is the base plus the weight edit.
    content, ledger = read_edit(finished / "edit.safetensors")
    deltas = content.deltas()
    base = load_file(model / "text_encoder" / "model.safetensors")
    base = {f"text_model.{name.removeprefix('text_model.')}": base[name] for name in base}
    edited = load_file(finished / "text_encoder" / "model.safetensors")
    assert tuple(deltas) == (1, 2)
    for layer, delta in deltas.items():
        name = WEIGHT.format(layer)
        assert np.abs(delta).max() > 0
        np.testing.assert_allclose(edited[name], base[name] + delta, atol=1e-6)
    sources = {request["source"] for request in ledger["requests"]}
    assert sources == {request["source"] for request in REQUESTS}
    page = (finished / "report.html").read_text()
    assert "great white shark" in page


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([KILLS[2], KILLS[3], KILLS[5]], id="three times"),
        pytest.param(KILLS, id="everywhere", marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_and_started_again_it_ends_with_the_same_bits(
    kills: Sequence[tuple[str, str, int, int]],
    finished: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "workdir"
    for kill in kills:
        _, name, number, _ = kill
        done = command(workdir, *kill)
        assert done.returncode == (143 if number == TERM else -number), done.stderr
        assert not (workdir / "metrics.json").exists()
        if number == TERM:
            *_, told, last = done.stderr.strip().splitlines()
            assert told.startswith("SIGTERM: stopping after")
            assert last == "stopped by SIGTERM; the same command goes on from here"
            pattern, files = SAVED[name]
            assert len(list(workdir.glob(pattern))) == files
    assert (workdir / "edit.safetensors").exists()
    done = command(workdir)
    assert done.returncode == 0, done.stderr
    require_same_results(workdir, finished)


def test_evaluation_settings_may_change_and_leave_the_edit_alone(
    finished: Path,
    config: EditConfig,
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(finished, workdir)
    before = (workdir / "edit.safetensors").stat().st_mtime_ns
    other = dataclasses.replace(config.evaluation, prompts_per_request=1)
    done = command(workdir, config=dataclasses.replace(config, evaluation=other))
    assert done.returncode == 0, done.stderr
    assert (workdir / "edit.safetensors").stat().st_mtime_ns == before
    assert metrics(workdir)["images"] < metrics(finished)["images"]
    assert metrics(workdir)["stage_two"] == metrics(finished)["stage_two"]


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


ADDS = """
import sys
from pathlib import Path
from emcid_jax.editing.bank import concepts, memories

other, folder = map(Path, sys.argv[1:])
(monet,) = [c for c in concepts.read_list(other) if c.request.source == "Claude Monet"]
memories.copy_record(other, folder, monet.memory)
concepts.add(folder, [monet])
"""


def test_what_another_process_adds_to_the_bank_meanwhile_stays_in_it(
    config: EditConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"

    def find_memories(*_: Any) -> list[memories.Memory]:
        other = ROOT / "tests" / "data" / "version_0_1" / "bank"
        command = [sys.executable, "-c", ADDS, str(other), str(bank)]
        subprocess.run(command, cwd=ROOT, check=True)
        return [memories.Memory(*(np.zeros(1, np.float32),) * 5)] * len(REQUESTS)

    monkeypatch.setattr(edit, "find_memories", find_memories)
    monkeypatch.setattr(edit, "find_measured", lambda *_: None)
    monkeypatch.setattr(edit, "_mix", lambda *_: {})
    monkeypatch.setattr(edit, "write_edit", lambda *_: None)
    run = Run(config.run, tmp_path, Log(tmp_path / "metrics.jsonl"), make_mesh())
    edit.edit(edit_job.prepare(config), run)
    found = {concept.request.source for concept in read_list(bank)}
    assert found == {"Claude Monet", *(request["source"] for request in REQUESTS)}


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
    finished: Path,
    config: EditConfig,
    fails: Callable[[EditConfig, Path], list[str]],
    section: str,
    fields: dict[str, Any],
    named: str,
) -> None:
    before = snapshot(finished)
    (line,) = fails(changed(config, section, **fields), finished)
    assert line.startswith(f"error: {named}")
    after = snapshot(finished)
    after.pop(str(finished / ".lock"))
    assert after.items() <= before.items()


def test_changed_requests_are_refused(
    finished: Path,
    config: EditConfig,
    fails: Callable[[EditConfig, Path], list[str]],
    tmp_path: Path,
) -> None:
    other = tmp_path / "requests.json"
    other.write_text(json.dumps({"requests": [REQUESTS[0] | {"dest": "tench"}, *REQUESTS[1:]]}))
    (line,) = fails(changed(config, "requests", path=str(other)), finished)
    assert line.startswith("error: config.requests.path: the content")


def test_every_mistake_is_a_line_and_leaves_nothing(
    config: EditConfig, model: Path, fails: Callable[[EditConfig, Path], list[str]], tmp_path: Path
) -> None:
    workdir = tmp_path / "workdir"
    manifest = tmp_path / "bad.json"
    manifest.write_text('{"requests": [\n{"source": "dog"},\n{"source": "cat", "dset": "x"}]}')
    nan = tmp_path / "nan"
    shutil.copytree(model, nan)
    weights = load_file(nan / "text_encoder" / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.fc2.weight"))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, nan / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    block = changed(config, "stage_one", layer=7)
    cases = [
        (changed(config, "requests", path=str(tmp_path / "no.json")), ["no.json"]),
        (changed(config, "model", path=str(tmp_path / "no")), ["config.model.path", "no"]),
        (changed(block, "stage_two", layers=(1, 7)), ["config.stage_one.layer", "0 to 3"]),
        (changed(config, "model", path=str(nan)), [name, "NaN"]),
        (changed(config, "moments", captions=str(tmp_path / "no.txt")), ["moments.captions"]),
        (changed(config, "evaluation", judge=str(tmp_path / "no")), ["config.evaluation.judge"]),
        (changed(config, "evaluation", holdout_path="no.json"), ["no.json"]),
    ]
    for case, words in cases:
        (line,) = fails(case, workdir)
        assert all(word in line for word in words), line
        assert not workdir.exists()
    lines = fails(changed(config, "requests", path=str(manifest)), workdir)
    assert any("bad.json:2" in line and "dest" in line for line in lines)
    assert any("bad.json:3" in line and "dset" in line for line in lines)
    assert not workdir.exists()


def test_an_unwritable_workdir_is_one_line(
    config: EditConfig, fails: Callable[[EditConfig, Path], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (line,) = fails(config, tmp_path / "file" / "workdir")
    assert "--workdir" in line
    assert "is a file" in line
    assert (tmp_path / "file").read_text() == "x"
