"""The bundled model, what units read of it, and three concepts with random memories."""

from __future__ import annotations

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.units import statistics
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.captions import sample_captions

BLOCK = 0
TEMPLATES = ("a photo of {}", "{}")
REQUESTS = [
    EditRequest("goldfish", "tench", TEMPLATES),
    EditRequest("acoustic guitar", "violin", TEMPLATES),
    EditRequest("electric guitar", "violin", TEMPLATES),
]


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return load_pipeline(model_folder(BUNDLED))


@pytest.fixture(scope="session")
def measured(pipeline: Pipeline) -> UnitStatistics:
    captions = [caption.text for caption in sample_captions(500, 5)]
    return statistics.measure(pipeline.encoder, captions, BLOCK)


@pytest.fixture(scope="session")
def bank(pipeline: Pipeline, random_bank) -> ConceptBank:
    start = np.zeros((len(REQUESTS), pipeline.encoder.model.config.hidden_size))
    return random_bank(REQUESTS, start, memories.model_hashes(pipeline), BLOCK)
