"""What a run holds, and the edit of its bank with concepts weakened or left out; writes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.config import (
    EvaluationConfig,
    ModelConfig,
    MomentConfig,
    RunConfig,
    StageTwoConfig,
    from_config_dict,
    renamed,
)
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics.token_shares import Writers, writers
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two.solve import ModelEdit, WeightEdit, with_edit
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import environment
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.find_moments import (
    Measured,
    edited_layers,
    find_captions,
    moments_folder,
    read_measured,
)
from emcid_jax.workflow.inputs import require_layers
from emcid_jax.workflow.open_model import open_model

TASKS = ("edit", "bank")
"""Tasks whose folders hold all that solving takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A run, read."""

    folder: Path
    model: str
    """The base model, as the run's settings name it."""
    concepts: ConceptBank
    pipeline: Pipeline
    where: tuple[Site, ...]
    moments: Mapping[str, Measured]
    config: StageTwoConfig
    steps: int
    """Sampler steps of the run's own pictures."""
    guidance: float


@dataclasses.dataclass(frozen=True, eq=False)
class Edited:
    """The bank, solved."""

    active: tuple[int, ...]
    """Places, in the bank, of the concepts of strength > 0."""
    pipeline: Pipeline
    edit: ModelEdit
    """By text encoder; empty where no concept is left."""
    writers: Mapping[str, Writers]
    """By text encoder, of linear solvers."""


def open_session(folder: Path) -> Session:
    """Reads the work folder of a finished task `edit` or `bank`.

    UserError if it is another folder, if something is missing there or damaged, or if the model is
    not the one that the run edited.
    """
    values = _settings(folder)

    def settings(section: str, cls: type) -> Any:
        return from_config_dict(values.get(section, {}), cls, f"config.{section}")

    model = settings("model", ModelConfig)
    config = preservation.resolved(settings("stage_two", StageTwoConfig))
    drawn = settings("evaluation", EvaluationConfig)
    if settings("run", RunConfig).compile_cache:
        environment.use_compile_cache()
    concepts = concept_bank.open_bank(Path(values.get("bank", folder / "bank")))
    if not concepts.concepts:
        raise UserError(f"RUN is {str(folder)!r}, whose bank is empty; add a concept")
    pipeline = open_model(model)
    bank_solve.require_base(concepts, pipeline)
    chosen = concepts.active or concepts.concepts
    where = bank_solve.common_sites([concepts.records[one.memory] for one in chosen], pipeline)
    require_layers(config, where, pipeline)
    layers, place = edited_layers(config, where), folder / "moments"
    if values["task"] == "bank":
        captions = find_captions(settings("moments", MomentConfig))
        place = moments_folder(folder, memories.model_hashes(pipeline), captions, layers)
    moments = read_measured(config, layers, place)
    return Session(
        folder,
        model.path,
        concepts,
        pipeline,
        where,
        moments,
        config,
        drawn.steps,
        drawn.guidance,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """The settings in a run's config.json. UserError if there are none, or of another task."""
    said = f"RUN is {str(folder)!r}"
    if not folder.is_dir():
        raise UserError(f"{said}, which is no folder; give that of a finished run")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{said}, which has no config.json; give the folder that a run was told as --workdir"
        )
    values = renamed.current(folders.read_config(folder).get("config"))
    task = values.get("task") if isinstance(values, Mapping) else None
    if not isinstance(values, Mapping) or task not in TASKS:
        raise UserError(
            f"{said}, the folder of task {task!r}; give one of task {' or '.join(TASKS)}"
        )
    return dict(values)


def weighed(concepts: ConceptBank, strengths: Sequence[float]) -> ConceptBank:
    """The bank with other strengths, one per concept. UserError if they are not as many."""
    if len(strengths) != len(concepts.concepts):
        raise UserError(
            f"strengths are {len(strengths)}, but the bank has {len(concepts.concepts)} concepts; "
            "load the page again"
        )
    changed = (
        dataclasses.replace(concept, strength=float(strength))
        for concept, strength in zip(concepts.concepts, strengths, strict=True)
    )
    return dataclasses.replace(concepts, concepts=tuple(changed))


def solved(session: Session, strengths: Sequence[float]) -> Edited:
    """The bank solved with these strengths, one per concept, by a linear solver.

    It is the edit that task `bank` writes of such a bank. UserError as `bank.solve.solve` says.
    """
    concepts = weighed(session.concepts, strengths)
    active = _active(strengths)
    if not active:
        return Edited((), session.pipeline, {}, {})
    edit = bank_solve.solve_relative(concepts, session.pipeline, session.moments, session.config)
    requests = [concept.request for concept in concepts.active]
    found = {
        encoder.name: writers(encoder, requests, moments, session.config.of(encoder.name))
        for encoder in session.pipeline.encoders
        if isinstance(moments := session.moments.get(encoder.name), SecondMoments)
    }
    return Edited(active, with_edit(session.pipeline, edit), edit, found)


def scaled(session: Session, whole: Edited, strengths: Sequence[float]) -> Edited:
    """Concept units with other strengths, at once.

    Gates stay as `whole` has them, fitted for all concepts: only their answers change. A unit that
    several names share is shut when all of them are.

    Args:
        session: the run.
        whole: the bank solved with all strengths at 1.
        strengths: one per concept.
    """
    weighed(session.concepts, strengths)
    edit = {name: _scaled(one, strengths) for name, one in whole.edit.items()}
    return Edited(_active(strengths), with_edit(session.pipeline, edit), edit, {})


def _active(strengths: Sequence[float]) -> tuple[int, ...]:
    return tuple(place for place, strength in enumerate(strengths) if strength > 0)


def _scaled(edit: WeightEdit, strengths: Sequence[float]) -> WeightEdit:
    told, units = edit.report.units, edit.units
    assert told is not None
    assert units is not None
    factors: dict[str, float] = {}
    for gate, strength in zip(told.gates, strengths, strict=True):
        unit = gate.shares or gate.source
        factors[unit] = factors.get(unit) or strength
    order = [factors[gate.source] for gate in told.gates if not gate.shares]
    answers = units.answers * np.asarray(order, np.float32)[:, None]
    return dataclasses.replace(edit, units=dataclasses.replace(units, answers=answers))
