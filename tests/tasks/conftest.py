"""What tasks leave in a workdir is what they say that they write; the main job on a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.storage import ownership
from emcid_jax.workflow import workdir as folders
from main_job import CAPTIONS, NAMES, REQUESTS, ROOT, written

MODULE = ("-m", "emcid_jax.main")


@pytest.fixture(autouse=True)
def nothing_is_written_that_was_not_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's WRITES is what is asked for before a run; a name that is missing there is found."""
    exclusive = folders.exclusive

    @contextlib.contextmanager
    def watched(workdir: Path, names: Sequence[str]) -> Iterator[None]:
        known = {".lock", ownership.LIST}
        known.update(os.listdir(workdir) if workdir.is_dir() else ())
        with exclusive(workdir, names):
            yield
        new = set(os.listdir(workdir)) - known
        assert [name for name in new if not any(fnmatchcase(name, n) for n in names)] == []

    monkeypatch.setattr(folders, "exclusive", watched)


@pytest.fixture(scope="session")
def judged_model(
    tiny_pipeline_folder: Path,
    write_tiny_judge: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny Stable Diffusion with a random judge in it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_pipeline_folder, folder)
    write_tiny_judge(folder / "judge", NAMES)
    return folder


@pytest.fixture(scope="session")
def edit_config(judged_model: Path) -> EditConfig:
    """The main job on that model, five requests."""
    files = judged_model.parent
    (files / "requests.json").write_text(json.dumps({"requests": REQUESTS}))
    (files / "captions.txt").write_text("\n".join(CAPTIONS))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(files / "requests.json")),
        model=settings.ModelConfig(path=str(judged_model)),
        stage_one=settings.StageOneConfig(layer=2, steps=3, image_steps=1),
        moments=settings.MomentConfig(captions=str(files / "captions.txt"), batch=4),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(steps=1, guidance=2.0, batch=8, holdout=2),
        run=settings.RunConfig(save_every=2, save_every_batches=1, progress=False),
    )


@pytest.fixture(scope="session")
def edit_command(
    edit_config: EditConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in a process of its own."""
    files = tmp_path_factory.mktemp("command")
    environment = os.environ | {"XDG_CACHE_HOME": str(files / "cache")}

    def run(
        workdir: Path, *, start: Sequence[str] = MODULE, config: EditConfig = edit_config
    ) -> subprocess.CompletedProcess[str]:
        file = written(config, files / "settings.py")
        return subprocess.run(
            [sys.executable, *start, f"--config={file}", f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def finished_edit(
    edit_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The workdir of a run that nobody disturbed. Do not write to it."""
    workdir = tmp_path_factory.mktemp("finished") / "workdir"
    done = edit_command(workdir)
    assert done.returncode == 0, done.stderr
    return workdir
