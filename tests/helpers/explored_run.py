"""A run as a finished edit leaves it, made by hand: random offsets on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcid_jax import api
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.diagnostics.predicted_conflicts import clean_run
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.moments import second_moment
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.workflow import workdir as folders
from main_job import UNLIKE_CAPTIONS


def make_run(folder: Path, config: EditConfig, requests: Sequence[EditRequest]) -> None:
    """Bank, second moments and config.json of an edit of `requests` by a linear solver."""
    pipeline = load_pipeline(Path(config.model.path))
    encoders = {encoder.name: encoder for encoder in pipeline.encoders}
    where = sites(config.stage_one, pipeline.texts)
    starts = np.concatenate(
        [clean_run(encoders[s.encoder], requests, (s.layer,)).states for s in where], axis=1
    )
    model, none = memories.model_hashes(pipeline), np.zeros(4, np.float32)
    concepts = []
    for request, start in zip(requests, starts, strict=True):
        delta = np.random.default_rng(len(concepts)).standard_normal(start.shape)
        memory = Memory(*(x.astype(np.float32) for x in (start + delta, delta, none, none, none)))
        about = memories.provenance(request, config.stage_one, model)
        memories.write(folder / "bank", about, memory, {})
        concepts.append(concept_bank.Concept(request, memories.key(about)))
    concept_bank.put(folder / "bank", concepts)
    measured = api.second_moments(pipeline, UNLIKE_CAPTIONS, config.stage_two)
    for name, moments in measured.items():
        place = folder / "moments" / ("" if name == FIRST else name)
        place.mkdir(parents=True, exist_ok=True)
        second_moment.write_moments(place / "second_moments.safetensors", moments)
    folders.write_config(folder, config, {}, {})
