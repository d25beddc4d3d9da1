"""A run as a finished edit leaves it, made by hand: random offsets on the tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emcid_jax import api
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
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.diagnostics.predicted_conflicts import clean_run
from emcid_jax.editing.moments import second_moment
from emcid_jax.explore.session import Session, open_session
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.workflow import workdir as folders
from main_job import UNLIKE_CAPTIONS

BLOCK = 2
EVIL = "<b onload=alert(1)>snow"
REQUESTS = [
    EditRequest(source, "goldfish", ("A photo of {}", "{}"))
    for source in ("dog", "a female doctor", EVIL)
]


@pytest.fixture(scope="session")
def run_folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder. Do not write to it."""
    folder = tmp_path_factory.mktemp("explore") / "run"
    pipeline = load_pipeline(tiny_pipeline_folder)
    config = EditConfig(
        requests=RequestsConfig(path="requests.json"),
        model=ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=StageOneConfig(layer=BLOCK),
        stage_two=StageTwoConfig(layers=(1, BLOCK), preservation_weight=0.1),
        evaluation=EvaluationConfig(steps=2, guidance=2.0),
        run=RunConfig(compile_cache=False),
    )
    starts = clean_run(pipeline.encoder, REQUESTS, (BLOCK,)).states
    model, none = memories.model_hashes(pipeline), np.zeros(4, np.float32)
    concepts = []
    for request, start in zip(REQUESTS, starts, strict=True):
        delta = np.random.default_rng(len(concepts)).standard_normal(start.shape)
        memory = Memory(*(x.astype(np.float32) for x in (start + delta, delta, none, none, none)))
        about = memories.provenance(request, config.stage_one, model)
        memories.write(folder / "bank", about, memory, {})
        concepts.append(concept_bank.Concept(request, memories.key(about)))
    concept_bank.put(folder / "bank", concepts)
    measured = api.second_moments(pipeline, UNLIKE_CAPTIONS, config.stage_two)["text_encoder"]
    (folder / "moments").mkdir()
    second_moment.write_moments(folder / "moments" / "second_moments.safetensors", measured)
    folders.write_config(folder, config, {}, {})
    return folder


@pytest.fixture(scope="session")
def session(run_folder: Path) -> Session:
    return open_session(run_folder)


@pytest.fixture(scope="session")
def places(session: Session) -> dict[str, int]:
    """Source -> its place in the bank."""
    return {one.request.source: i for i, one in enumerate(session.concepts.concepts)}
