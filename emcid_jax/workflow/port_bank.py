"""Operation `port` of the task `bank`: the bank's edit of a model derived from its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from emcid_jax.config import ModelConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.export import edit_file, text_encoder
from emcid_jax.editing.export import port as portability
from emcid_jax.editing.export.port import Ported
from emcid_jax.editing.stage_two import preservation
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.bank_inputs import Settings, measured_moments, require_own, started
from emcid_jax.workflow.find_moments import find_captions
from emcid_jax.workflow.inputs import require_layers
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.write_edit import export


@runtime_checkable
class PortSettings(Settings, Protocol):
    """What porting takes beyond what solving does."""

    @property
    def base(self) -> ModelConfig: ...  # noqa: D102
    @property
    def edit(self) -> str: ...  # noqa: D102


def port(config: PortSettings, workdir: Path, names: Sequence[str]) -> Ported:
    """Leaves `text_encoder/`, `edit.safetensors` and `port.json` of `config.model` in `workdir`.

    `names` are what the task writes there. UserError, before anything is written, if bank, models,
    edit and settings do not fit.
    """
    folders.require_writable(workdir, names, config)
    text_encoder.require_replaceable(workdir / "text_encoder")
    require_own(workdir, config.task)
    settings = preservation.resolved(config.stage_two)
    concepts = concept_bank.open_bank(Path(config.bank))
    captions = find_captions(config.moments)
    given = edit_file.read_edit(Path(config.edit)) if config.edit else None
    base, derived = (
        open_model(model, config.run.weight_shards) for model in (config.base, config.model)
    )
    portability.compare(base, derived)
    bank_solve.require_base(concepts, base)
    where = bank_solve.sites_of(concepts, base)
    require_layers(settings, where, derived)
    with started(config, workdir, names, concepts, derived, captions) as run:
        with run.log.timed("port"):
            found = portability.port(
                concepts,
                base,
                derived,
                settings,
                lambda model: measured_moments(config, model, where, captions, run)[FIRST],
                given,
            )
        _export(found, config, concepts, derived, workdir, given[1] if given else {})
        folders.write_json(workdir / "port.json", portability.as_json(found))
    return found


def _export(
    found: Ported,
    config: PortSettings,
    concepts: concept_bank.ConceptBank,
    derived: Pipeline,
    workdir: Path,
    ledger: dict,
) -> None:
    """What is in the file is what is exported; edit.safetensors appears last."""
    edited = portability.apply(derived, found.content, found.report)
    export(derived, {FIRST: edited}, config.model.export_dtype, workdir)
    model, edited_hash = memories.model_hashes(derived), params_hash(edited)
    if found.moments is not None:
        settings = preservation.resolved(config.stage_two)
        ledger = edit_file.make_ledger(
            concepts,
            model,
            {FIRST: found.moments},
            settings,
            {FIRST: found.report},
            {FIRST: edited_hash},
        )
    ledger = ledger | {"base": model, "edited": edited_hash}
    edit_file.write_edit(workdir / "edit.safetensors", found.content, ledger)
