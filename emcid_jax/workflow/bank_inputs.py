"""What tasks that solve a bank start from: the bank, the model, its second moments, a workdir."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from emcid_jax.config import ModelConfig, MomentConfig, RunConfig, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.stage_two import preservation
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow import environment
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.find_moments import (
    Measured,
    edited_layers,
    find_captions,
    find_measured,
    moments_folder,
)
from emcid_jax.workflow.inputs import require_layers
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.workdir import Run, running


@runtime_checkable
class Settings(Protocol):
    """The settings that these tasks have in common."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def bank(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> ModelConfig: ...  # noqa: D102
    @property
    def moments(self) -> MomentConfig: ...  # noqa: D102
    @property
    def stage_two(self) -> StageTwoConfig: ...  # noqa: D102
    @property
    def run(self) -> RunConfig: ...  # noqa: D102


class Solvable(NamedTuple):
    """A bank with all that solving it takes."""

    concepts: ConceptBank
    pipeline: Pipeline
    model: dict[str, str]
    """Hashes of the model's parts."""
    where: tuple[Site, ...]
    """Sites of the memories."""
    moments: Mapping[str, Measured]
    """By text encoder."""
    run: Run


@contextlib.contextmanager
def solvable(
    config: Settings, workdir: Path, names: Sequence[str], moments_file: str = ""
) -> Iterator[Solvable]:
    """Reads the bank and its base model; `workdir` is this process's while the block runs.

    `names` are what the task writes there. Second moments are read from `moments_file`, or else
    measured and kept in `workdir` for the next time. UserError, before anything is written, if
    bank, model and settings do not fit.
    """
    folders.require_writable(workdir, names, config)
    require_own(workdir, config.task)
    preservation.resolved(config.stage_two)  # What is wrong with it is said at once.
    concepts = concept_bank.open_bank(Path(config.bank))
    captions = [] if moments_file else find_captions(config.moments)
    pipeline = open_model(config.model, config.run.weight_shards)
    bank_solve.require_base(concepts, pipeline)
    where = bank_solve.sites_of(concepts, pipeline)
    require_layers(config.stage_two, where, pipeline)
    measured = _given_moments(moments_file, where)
    with started(config, workdir, names, concepts, pipeline, captions) as run:
        model = bank.model_hashes(pipeline)
        moments = measured or measured_moments(config, pipeline, where, captions, run)
        yield Solvable(concepts, pipeline, model, where, moments, run)


@contextlib.contextmanager
def started(
    config: Settings,
    workdir: Path,
    names: Sequence[str],
    concepts: ConceptBank,
    pipeline: Pipeline,
    captions: Sequence[str],
) -> Iterator[Run]:
    """Holds `workdir`, and says in it what the run is made from."""
    with running(config.run, workdir, names) as run:
        inputs = {
            "bank": bank.hash_of([(c.memory, c.strength) for c in concepts.concepts]),
            "model.path": bank.hash_of(bank.model_hashes(pipeline)),
            "moments.captions": bank.hash_of(list(captions)),
        }
        folders.write_config(workdir, config, inputs, environment.describe())
        yield run


def measured_moments(
    config: Settings,
    pipeline: Pipeline,
    where: Sequence[Site],
    captions: Sequence[str],
    run: Run,
) -> dict[str, Measured]:
    """What Stage II reads, measured anew only when what decides it has changed."""
    model, layers = bank.model_hashes(pipeline), edited_layers(config.stage_two, where)
    folder = moments_folder(run.workdir, model, captions, layers)
    return find_measured(pipeline, captions, config.stage_two, layers, config.moments, folder, run)


def _given_moments(file: str, where: Sequence[Site]) -> dict[str, Measured]:
    """Second moments from the user's file; none without a file."""
    if not file:
        return {}
    if len(where) > 1:
        raise UserError(
            f"config.moments_file is {file!r}, which holds the second moments of one text encoder, "
            f"but the bank edits {len(where)}; leave it empty, and they are measured"
        )
    return {where[0].encoder: second_moment.read_moments(Path(file))}


def require_bank(path: str) -> None:
    """UserError if no bank's folder is given."""
    if not path:
        raise UserError("config.bank is empty; give the bank's folder, e.g. runs/mine/bank")


def require_own(workdir: Path, task: str) -> None:
    """UserError if the folder's results are those of another task."""
    written = (workdir / "config.json").exists()
    if written and folders.read_config(workdir)["config"]["task"] != task:
        raise UserError(
            f"--workdir is {str(workdir)!r}, which holds another task's results; give a new one"
        )
