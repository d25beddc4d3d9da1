"""A run of the tiny model, and what is read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import (
    EditConfig,
    EvaluationConfig,
    ModelConfig,
    RequestsConfig,
    RunConfig,
    StageOneConfig,
    StageTwoConfig,
)
from emcid_jax.explore.session import Session, open_session
from explored_run import make_run

EVIL = "<b onload=alert(1)>snow"
REQUESTS = [
    EditRequest(source, "goldfish", ("A photo of {}", "{}"))
    for source in ("dog", "a female doctor", EVIL)
]


def run_config(model: Path) -> EditConfig:
    """A main job's, that edits blocks 1 and 2 of the first encoder, 2 and 3 of the second."""
    return EditConfig(
        requests=RequestsConfig(path="requests.json"),
        model=ModelConfig(path=str(model)),
        stage_one=StageOneConfig(layer=2, second_layer=3),
        stage_two=StageTwoConfig(layers=(1, 2), second_layers=(2, 3), preservation_weight=0.1),
        evaluation=EvaluationConfig(steps=2, guidance=2.0),
        run=RunConfig(compile_cache=False),
    )


@pytest.fixture(scope="session")
def run_folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder. Do not write to it."""
    folder = tmp_path_factory.mktemp("explore") / "run"
    make_run(folder, run_config(tiny_pipeline_folder), REQUESTS)
    return folder


@pytest.fixture(scope="session")
def session(run_folder: Path) -> Session:
    return open_session(run_folder)


@pytest.fixture(scope="session")
def session_xl(tiny_xl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The same edit of both text encoders of the tiny SDXL."""
    folder = tmp_path_factory.mktemp("explore-xl") / "run"
    make_run(folder, run_config(tiny_xl_folder), REQUESTS)
    return open_session(folder)


@pytest.fixture(scope="session")
def places(session: Session) -> dict[str, int]:
    """Source -> its place in the bank."""
    return {one.request.source: i for i, one in enumerate(session.concepts.concepts)}
